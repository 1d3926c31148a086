//! The rules of a lease as a small model that is explored completely: one server, two clients, an
//! ordered link to each that may be cut or fall silent at any moment, and time that passes at
//! will. What must always hold is checked in every state; with a rule switched off, the checker
//! must find where it fails, or it would see nothing.

mod world;

use stateright::{Checker, HasDiscoveries, Model, Property};
use world::{Action, CLIENTS, Rules, World};

/// The model: the rules that are in force, and how often the unlucky client may ask for the key.
struct Leases(Rules, u8);

impl Model for Leases {
    type State = World;
    type Action = Action;

    fn init_states(&self) -> Vec<World> {
        vec![World::new(self.1)]
    }

    fn actions(&self, world: &World, actions: &mut Vec<Action>) {
        actions.extend(Action::all().filter(|action| world.allows(*action, self.0)));
    }

    fn next_state(&self, world: &World, action: Action) -> Option<World> {
        let mut next = world.clone();
        next.apply(action, self.0);
        (next != *world).then_some(next)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("at most one client believes that it holds the key", |_, world: &World| {
                (0..CLIENTS).filter(|client| world.believes(*client)).count() <= 1
            }),
            Property::always("who believes to hold the key has not been passed over", |_, world: &World| {
                (0..CLIENTS).all(|client| !world.believes(client) || world.is_latest(client))
            }),
            Property::always("a client that wants nothing keeps nothing", |_, world: &World| {
                (0..CLIENTS).all(|client| !world.is_at_rest(client) || !world.server_knows(client))
            }),
            Property::always("nobody waits for a key that is free", |_, world: &World| {
                !world.is_waited_for() || world.is_held()
            }),
            Property::always(
                "where replies fit, the server is never stuck",
                |Self(rules, _), world: &World| {
                    !rules.replies_fit || (0..CLIENTS).all(|client| !world.is_stuck(client))
                },
            ),
            Property::sometimes("a lease is handed on", |_, world: &World| {
                world.believes(1) && world.fence() == 2
            }),
            Property::sometimes("a lease runs out while its holder hears nothing", |_, world: &World| {
                world.has_run_out(0)
            }),
            Property::sometimes("a server drops a client that it does not hear", |_, world: &World| {
                world.was_dropped(0)
            }),
            Property::sometimes(
                "a server gives up a holder that does not read",
                |Self(rules, _), world: &World| {
                    (rules.replies_fit || !rules.frees_late) || (world.was_given_up(0) && world.believes(0))
                },
            ),
        ]
    }
}

/// The first rules of safety found to fail under `rules`.
fn broken(rules: Rules) -> Vec<&'static str> {
    broken_among(Leases(rules, 2))
}

fn broken_among(leases: Leases) -> Vec<&'static str> {
    let rules = leases.0;
    let enough = HasDiscoveries::AnyFailures;
    let checker = leases.checker().threads(2).finish_when(enough).spawn_bfs().join();
    println!("{rules:?}: {} states", checker.unique_state_count());
    let mut found: Vec<_> = checker.discoveries().into_keys().collect();
    found.retain(|name| !LIVE.contains(name));
    found
}

/// What shows that the model gets anywhere.
const LIVE: [&str; 4] = [
    "a lease is handed on",
    "a lease runs out while its holder hears nothing",
    "a server drops a client that it does not hear",
    "a server gives up a holder that does not read",
];

#[test]
fn with_all_rules_every_state_is_safe_and_the_model_gets_everywhere() {
    let checker = Leases(Rules::ALL, 2).checker().threads(2).spawn_bfs().join();
    println!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    assert!(checker.is_done());
    assert!(checker.unique_state_count() > 10_000);
}

#[test]
fn a_deadline_that_counts_from_the_answer_lets_two_hold_the_key() {
    let broken = broken(Rules { deadline_from_sending: false, ..Rules::ALL });
    assert!(broken.contains(&"who believes to hold the key has not been passed over"), "{broken:?}");
}

#[test]
fn a_client_that_waits_for_its_deadline_alone_is_passed_over_when_the_server_drops_it() {
    let broken = broken(Rules { silence_loses: false, ..Rules::ALL });
    assert!(broken.contains(&"who believes to hold the key has not been passed over"), "{broken:?}");
}

#[test]
fn a_grant_that_had_to_queue_and_is_not_confirmed_has_no_proof() {
    let broken = broken(Rules { confirm_late_grants: false, ..Rules::ALL });
    assert!(broken.contains(&"who believes to hold the key has not been passed over"), "{broken:?}");
}

#[test]
fn an_orphan_that_is_not_released_keeps_the_key() {
    let broken = broken(Rules { release_orphans: false, ..Rules::ALL });
    assert!(broken.contains(&"a client that wants nothing keeps nothing"), "{broken:?}");
}

#[test]
fn a_handle_that_does_not_know_of_the_release_works_on_beside_the_next_holder() {
    let broken = broken(Rules { released_for_all: false, ..Rules::ALL });
    assert!(broken.contains(&"who believes to hold the key has not been passed over"), "{broken:?}");
}

#[test]
fn a_cancelled_request_whose_reply_is_not_awaited_shifts_every_later_reply() {
    let broken = broken(Rules { replies_in_order: false, ..Rules::ALL });
    assert!(!broken.is_empty());
}

/// Each of these two rules is enough: one makes up for servers that do not know the other.
#[test]
fn large_replies_are_safe_where_the_server_is_late_to_free_what_it_gives_up() {
    let rules = Rules { replies_fit: false, ..Rules::ALL };
    let checker = Leases(rules, 1).checker().threads(2).spawn_bfs().join();
    println!("{} states, {} deep", checker.unique_state_count(), checker.max_depth());
    checker.assert_properties();
    assert!(checker.is_done());
}

#[test]
fn a_client_that_keeps_its_replies_small_is_safe_with_a_server_that_frees_at_once() {
    let broken = broken_among(Leases(Rules { frees_late: false, ..Rules::ALL }, 1));
    assert!(broken.is_empty(), "{broken:?}");
}

#[test]
fn large_replies_from_a_server_that_frees_at_once_what_it_gives_up_let_two_hold_the_key() {
    let broken = broken(Rules { replies_fit: false, frees_late: false, ..Rules::ALL });
    assert!(broken.contains(&"who believes to hold the key has not been passed over"), "{broken:?}");
}

#[test]
fn a_key_that_is_not_handed_on_when_its_holders_connection_ends_is_free_and_waited_for() {
    let broken = broken(Rules { hands_on: false, ..Rules::ALL });
    assert!(broken.contains(&"nobody waits for a key that is free"), "{broken:?}");
}
