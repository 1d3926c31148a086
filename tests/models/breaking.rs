//! How contenders for a lock file break an expired lock, explored completely: each call to the file
//! system is a step, steps interleave at will, and any contender may crash, be stopped, or be taken for
//! dead while it lives, at any moment. Nobody looks at a clock here: a lock expires when it likes.

use stateright::{Checker, HasDiscoveries, Model, Property};

const CONTENDERS: usize = 3;
/// How often each may take the lock, so that the world is finite.
const TAKES: u8 = 1;

/// The rules that a contender obeys.
#[derive(Clone, Copy, Debug)]
struct Rules {
    /// A breaker goes on only when no other's challenge stands.
    survey: bool,
    /// It announces itself before it looks for others, not after.
    challenge_first: bool,
    /// What it renames is its challenge, so that the rename fails when that is gone.
    rename_challenge: bool,
    /// A late holder keeps the lock only when no challenge stands.
    late_looks: bool,
    /// A breaker takes away the claims of those alone whose process it can see to be dead.
    marks: bool,
}

const ALL: Rules =
    Rules { survey: true, challenge_first: true, rename_challenge: true, late_looks: true, marks: true };

/// Contenders from here on run where the others cannot see them, and the others' process numbers
/// mean nothing to them.
const ELSEWHERE: usize = 2;

/// A claim's file: whose, and which of its takes. The last owner died before the world began.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct File {
    owner: usize,
    take: u8,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Stage {
    Waiting,
    /// Has found the lock expired, from outside.
    Challenging,
    Surveying,
    Judging,
    /// Has found it expired, with a challenge of its own standing.
    Judged(File),
    /// Has set its end ahead, and waits.
    Settling(File),
    Firing,
    Holding,
    /// Held it when it expired, and has not heard.
    Late,
    /// Has set the end ahead.
    LateTouched,
    /// Has found no challenge.
    LateLooked,
    Dead,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct World {
    stages: [Stage; CONTENDERS],
    challenges: [bool; CONTENDERS],
    takes: [u8; CONTENDERS],
    /// What stands at the lock's path.
    lock: Option<File>,
    expired: bool,
    /// Who has set its end last.
    touched_by: usize,
    broken: bool,
    /// The claim of one that lives was taken away by another.
    robbed: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Action {
    /// The next call of a contender.
    Step(usize),
    /// The same, but it takes the owners of the challenges that it finds for dead.
    Purge(usize),
    Crash(usize),
    Expire,
}

impl World {
    fn new() -> Self {
        Self {
            stages: [Stage::Waiting; CONTENDERS],
            challenges: [false; CONTENDERS],
            takes: [0; CONTENDERS],
            lock: Some(File { owner: CONTENDERS, take: 0 }),
            expired: true,
            touched_by: CONTENDERS,
            broken: false,
            robbed: false,
        }
    }

    fn own(&self, who: usize) -> File {
        File { owner: who, take: self.takes[who] }
    }

    fn others_challenge(&self, who: usize, which: impl Fn(usize) -> bool) -> bool {
        (0..CONTENDERS).any(|other| other != who && self.challenges[other] && which(other))
    }

    /// Puts a new claim at the lock's path; the world ends where it has taken it often enough.
    fn take(&mut self, who: usize) -> Option<()> {
        self.takes[who] += 1;
        self.lock = Some(self.own(who));
        (self.expired, self.touched_by) = (false, who);
        self.stages[who] = Stage::Holding;
        (self.takes[who] <= TAKES).then_some(())
    }

    fn withdraw(&mut self, who: usize) -> Option<()> {
        self.challenges[who] = false;
        self.stages[who] = Stage::Waiting;
        Some(())
    }

    fn step(&mut self, who: usize, rules: Rules) -> Option<()> {
        let ours = self.lock == Some(self.own(who));
        self.stages[who] = match self.stages[who] {
            Stage::Waiting => match self.lock {
                None => return self.take(who),
                Some(_) if self.expired && rules.challenge_first => Stage::Challenging,
                Some(_) if self.expired => Stage::Surveying,
                Some(_) => return None,
            },
            Stage::Challenging => {
                self.challenges[who] = true;
                if rules.challenge_first { Stage::Surveying } else { Stage::Judging }
            }
            Stage::Surveying => {
                let (before, after) = (
                    self.others_challenge(who, |other| other < who),
                    self.others_challenge(who, |other| other > who),
                );
                if rules.survey && before {
                    return self.withdraw(who);
                }
                if rules.survey && after {
                    return None;
                }
                if rules.challenge_first { Stage::Judging } else { Stage::Challenging }
            }
            Stage::Judging => match self.lock.filter(|_| self.expired) {
                Some(file) => Stage::Judged(file),
                None => return self.withdraw(who),
            },
            Stage::Judged(file) => {
                if self.lock == Some(file) {
                    (self.expired, self.touched_by) = (false, who);
                }
                Stage::Settling(file)
            }
            Stage::Settling(file) => {
                if self.lock != Some(file) || self.touched_by != who {
                    return self.withdraw(who);
                }
                Stage::Firing
            }
            Stage::Firing => {
                let fires = self.challenges[who] || !rules.rename_challenge;
                self.withdraw(who)?;
                if !fires {
                    return Some(());
                }
                self.broken = true;
                self.robbed |= self.clean(who, rules);
                return self.take(who);
            }
            Stage::Holding => {
                // In time, and it has seen that it is its own.
                if ours {
                    self.lock = None;
                }
                Stage::Waiting
            }
            Stage::Late => {
                if ours {
                    (self.expired, self.touched_by) = (false, who);
                }
                Stage::LateTouched
            }
            Stage::LateTouched if rules.late_looks && self.others_challenge(who, |_| true) => Stage::Waiting,
            Stage::LateTouched => Stage::LateLooked,
            Stage::LateLooked => {
                if ours {
                    Stage::Holding
                } else {
                    Stage::Waiting
                }
            }
            Stage::Dead => return None,
        };
        Some(())
    }

    /// Takes away the claims of those whose process is not to be seen; `true` if one of them lives.
    /// All claims may be old: their owners may be slow, or stopped.
    fn clean(&self, who: usize, rules: Rules) -> bool {
        let is_seen = |other: usize| (other < ELSEWHERE) == (who < ELSEWHERE);
        let is_alive = |other: usize| self.stages[other] != Stage::Dead;
        let goes = |other: usize| if is_seen(other) { !is_alive(other) } else { !rules.marks };
        (0..CONTENDERS).any(|other| other != who && goes(other) && is_alive(other))
    }

    fn apply(&mut self, action: Action, rules: Rules) -> Option<()> {
        match action {
            Action::Step(who) => self.step(who, rules),
            Action::Purge(who) => {
                let looks = matches!(self.stages[who], Stage::Surveying | Stage::LateTouched);
                if !looks || !self.others_challenge(who, |_| true) {
                    return None;
                }
                (0..CONTENDERS)
                    .filter(|other| *other != who)
                    .for_each(|other| self.challenges[other] = false);
                self.step(who, rules)
            }
            Action::Crash(who) => {
                self.stages[who] = Stage::Dead;
                Some(())
            }
            Action::Expire => {
                let file = self.lock.filter(|_| !self.expired)?;
                self.expired = true;
                let holder = self.stages.get_mut(file.owner)?;
                if matches!(holder, Stage::Holding | Stage::LateTouched | Stage::LateLooked) {
                    *holder = Stage::Late;
                }
                Some(())
            }
        }
    }

    fn holders(&self) -> usize {
        self.stages.iter().filter(|stage| **stage == Stage::Holding).count()
    }
}

struct Breaking(Rules);

impl Model for Breaking {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new()]
    }

    fn actions(&self, _: &World, actions: &mut Vec<Action>) {
        for who in 0..CONTENDERS {
            actions.extend([Action::Step(who), Action::Purge(who), Action::Crash(who)]);
        }
        actions.push(Action::Expire);
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.apply(action, self.0)?;
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one holder", |_, world: &World| world.holders() <= 1),
            Property::always("what a holder has stands at the path", |_, world: &World| {
                let has =
                    |who: usize| world.stages[who] != Stage::Holding || world.lock == Some(world.own(who));
                (0..CONTENDERS).all(has)
            }),
            Property::always("what is a living one's is left to it", |_, world: &World| !world.robbed),
            Property::sometimes("a broken lock is held", |_, world: &World| {
                world.broken && world.holders() == 1
            }),
            Property::sometimes("a late holder holds on", |_, world: &World| {
                world.stages.contains(&Stage::LateLooked) && world.lock.is_some() && !world.expired
            }),
        ]
    }
}

/// Those of the rules of safety that are found to fail.
fn broken(rules: Rules) -> Vec<&'static str> {
    let enough = HasDiscoveries::AnyFailures;
    let checker = Breaking(rules).checker().threads(2).finish_when(enough).spawn_bfs().join();
    let found = checker.discoveries().into_keys();
    found.filter(|name| !name.starts_with("a ")).collect()
}

#[test]
fn of_all_who_break_a_lock_file_one_holds_it_whoever_stops_or_dies_where() {
    let checker = Breaking(ALL).checker().threads(2).spawn_bfs().join();
    println!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    assert!(checker.is_done());
    assert!(checker.unique_state_count() > 10_000);
}

#[test]
fn without_any_one_of_the_rules_of_breaking_two_hold_it_or_one_loses_its_claim() {
    let without: [Rules; 5] = [
        Rules { survey: false, ..ALL },
        Rules { challenge_first: false, ..ALL },
        Rules { rename_challenge: false, ..ALL },
        Rules { late_looks: false, ..ALL },
        Rules { marks: false, ..ALL },
    ];
    for rules in without {
        assert!(!broken(rules).is_empty(), "{rules:?} is as safe as all");
    }
}
