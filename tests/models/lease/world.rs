//! The model's world: what every party knows, what is on its way, and what may happen next. Times
//! are small whole numbers, and all of them ages or remainders, so that time may go on for ever.

/// How many clients there are: one that meets every fault, and one that only wants the key after it.
pub(crate) const CLIENTS: usize = 2;
/// The one that meets the faults.
const UNLUCKY: usize = 0;
/// How long a lease is.
const TTL: u8 = 4;
/// How long a connection may be silent before the server drops it.
const READ_TIMEOUT: u8 = 3;
/// How long a server may be silent before a client gives it up: less than the read timeout.
const SILENCE: u8 = 2;
/// How long a server tries to send to a client that does not read.
const WRITE_TIMEOUT: u8 = 1;
/// How many requests a client may have under way.
const PIPELINE: usize = 2;
/// How many small replies fit between a server and a client that does not read.
const BUFFER: u8 = 2;

/// The rules that are obeyed: `hands_on` and `frees_late` by the server, the others by the clients.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rules {
    pub(crate) deadline_from_sending: bool,
    pub(crate) silence_loses: bool,
    pub(crate) confirm_late_grants: bool,
    pub(crate) release_orphans: bool,
    pub(crate) replies_in_order: bool,
    /// A client asks over one connection only for as much as fits in between, so nothing large.
    pub(crate) replies_fit: bool,
    pub(crate) hands_on: bool,
    pub(crate) released_for_all: bool,
    /// What a connection held that the server gave up sending to is freed no earlier than if the
    /// server had only read nothing from it.
    pub(crate) frees_late: bool,
}

impl Rules {
    pub(crate) const ALL: Self = Self {
        deadline_from_sending: true,
        silence_loses: true,
        confirm_late_grants: true,
        release_orphans: true,
        replies_in_order: true,
        replies_fit: true,
        hands_on: true,
        released_for_all: true,
        frees_late: true,
    };
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Request {
    Try,
    Wait,
    Renew(u8),
    Release(u8),
    Stats,
    /// Half-closes the connection.
    End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Reply {
    Granted(u8),
    Busy,
    Done,
    Refused,
    /// The whole table, which is large.
    Table,
}

impl Request {
    /// How much of the buffer its reply takes.
    fn weight(self) -> u8 {
        if self == Self::Stats { Reply::Table.weight() } else { 1 }
    }
}

impl Reply {
    fn weight(self) -> u8 {
        if self == Self::Table { BUFFER + 1 } else { 1 }
    }
}

/// A request without a reply yet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Pending {
    request: Request,
    /// How long ago it was sent.
    age: u8,
    /// Whoever asked is gone.
    deserted: bool,
}

/// What a client is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Aim {
    Rest,
    Asking,
    /// A grant that came late: a renewal has to confirm it.
    Confirming(u8),
    Holding {
        fence: u8,
        /// How long until its deadline.
        left: u8,
    },
    /// Holds no more, by whatever way.
    Lost,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Client {
    aim: Aim,
    pending: Vec<Pending>,
    /// How long ago the last request was sent that was answered.
    unproven: u8,
    /// How many acquires it may yet make.
    tries: u8,
    /// How many renewals it may yet send, besides those that confirm a grant.
    signs: u8,
    /// How long work may yet go on that knows nothing of the release: that of another task, with a
    /// handle of its own.
    unaware: u8,
    /// How often it may yet ask for the table.
    looks: u8,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Link {
    up: Vec<Request>,
    down: Vec<Reply>,
    /// Nothing gets through any more. The client may be told at any time; the server is not, and
    /// finds out by its read timeout: one that is told alone, by whatever is in between, frees a
    /// key whose holder cannot know.
    cut: bool,
    open_at_client: bool,
    open_at_server: bool,
    /// How long ago the server last read from it.
    quiet: u8,
    dropped: bool,
    /// What the server sent and nobody will ever read, by its weight.
    unread: u8,
    /// How long the server has had more to send than goes in between.
    stuck: u8,
    /// The server gave up sending, and has not freed yet what the connection held.
    given_up: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Holder {
    client: usize,
    fence: u8,
    /// How long until the server takes it back.
    left: u8,
}

/// Everything, at one moment.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(crate) struct World {
    holder: Option<Holder>,
    queue: Vec<usize>,
    fence: u8,
    clients: [Client; CLIENTS],
    links: [Link; CLIENTS],
    silence_loses: bool,
}

/// What may happen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) enum Action {
    Tick,
    Sweep,
    Try(usize),
    Wait(usize),
    Cancel(usize),
    Renew(usize),
    Release(usize),
    Look(usize),
    ServerReads(usize),
    ClientReads(usize),
    Cut(usize),
    ServerDropsIdle(usize),
    ServerGivesUp(usize),
    ServerFrees(usize),
    ClientSeesEnd(usize),
}

impl Action {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        let each = [
            Self::Try,
            Self::Wait,
            Self::Cancel,
            Self::Renew,
            Self::Release,
            Self::Look,
            Self::ServerReads,
            Self::ClientReads,
            Self::Cut,
            Self::ServerDropsIdle,
            Self::ServerGivesUp,
            Self::ServerFrees,
            Self::ClientSeesEnd,
        ];
        let lucky = [Self::Wait, Self::Renew, Self::Release, Self::ServerReads, Self::ClientReads];
        let of_clients = each.map(|action| action(UNLUCKY)).into_iter().chain(lucky.map(|action| action(1)));
        [Self::Tick, Self::Sweep].into_iter().chain(of_clients)
    }
}

impl World {
    /// With a client that asks for the key up to so many times, and renews once less.
    pub(crate) fn new(tries: u8) -> Self {
        let client = Client {
            aim: Aim::Rest,
            pending: Vec::new(),
            unproven: 0,
            tries: 1,
            signs: 0,
            looks: 0,
            unaware: 0,
        };
        let link = Link {
            up: Vec::new(),
            down: Vec::new(),
            cut: false,
            open_at_client: true,
            open_at_server: true,
            quiet: 0,
            dropped: false,
            unread: 0,
            stuck: 0,
            given_up: false,
        };
        Self {
            holder: None,
            queue: Vec::new(),
            fence: 0,
            clients: [Client { tries, signs: tries - 1, looks: 1, ..client.clone() }, client],
            links: std::array::from_fn(|_| link.clone()),
            silence_loses: true,
        }
    }

    /// Whether the client takes the key for its own.
    pub(crate) fn believes(&self, client: usize) -> bool {
        if self.clients[client].unaware > 0 {
            return true;
        }
        let Client { aim: Aim::Holding { left, .. }, unproven, .. } = self.clients[client] else {
            return false;
        };
        left > 0 && (!self.silence_loses || unproven < SILENCE)
    }

    /// Whether no grant was made after the client's.
    pub(crate) fn is_latest(&self, client: usize) -> bool {
        self.holder.is_some_and(|holder| holder.client == client && holder.fence == self.fence)
            && matches!(self.clients[client].aim, Aim::Holding { fence, .. } if fence == self.fence)
    }

    /// Whether nothing is under way for the client, and its connection is whole.
    pub(crate) fn is_at_rest(&self, client: usize) -> bool {
        let link = &self.links[client];
        let quiet = link.up.is_empty() && link.down.is_empty() && self.clients[client].pending.is_empty();
        self.clients[client].aim == Aim::Rest && quiet && !link.cut && link.open_at_client
    }

    pub(crate) fn server_knows(&self, client: usize) -> bool {
        self.queue.contains(&client) || self.holder.is_some_and(|holder| holder.client == client)
    }

    pub(crate) fn is_held(&self) -> bool {
        self.holder.is_some()
    }

    pub(crate) fn is_waited_for(&self) -> bool {
        !self.queue.is_empty()
    }

    pub(crate) fn fence(&self) -> u8 {
        self.fence
    }

    pub(crate) fn has_run_out(&self, client: usize) -> bool {
        matches!(self.clients[client].aim, Aim::Holding { left: 0, .. })
    }

    pub(crate) fn was_dropped(&self, client: usize) -> bool {
        self.links[client].dropped
    }

    /// Whether the server has more to send to the client than fits in between.
    pub(crate) fn is_stuck(&self, client: usize) -> bool {
        let link = &self.links[client];
        let sent = link.down.iter().map(|reply| reply.weight()).sum::<u8>();
        link.open_at_server && link.unread + sent > BUFFER
    }

    pub(crate) fn was_given_up(&self, client: usize) -> bool {
        self.links[client].given_up
    }

    pub(crate) fn allows(&self, action: Action, rules: Rules) -> bool {
        match action {
            Action::Tick => true,
            Action::Sweep => self.holder.is_some_and(|holder| holder.left == 0),
            Action::Try(c) | Action::Wait(c) => {
                let may_ask = self.clients[c].aim == Aim::Rest && self.clients[c].tries > 0;
                may_ask && self.may_send(c, Request::Try, rules)
            }
            Action::Cancel(c) => self.clients[c].aim == Aim::Asking,
            Action::Renew(c) => {
                let due = match self.clients[c].aim {
                    Aim::Confirming(_) => self.clients[c].pending.is_empty(),
                    Aim::Holding { .. } => self.clients[c].signs > 0 && self.believes(c),
                    _ => false,
                };
                due && self.may_send(c, Request::Renew(0), rules)
            }
            Action::Release(c) => {
                let holds = matches!(self.clients[c].aim, Aim::Holding { .. });
                holds && self.may_send(c, Request::Release(0), rules)
            }
            Action::Look(c) => self.clients[c].looks > 0 && self.may_send(c, Request::Stats, rules),
            Action::ServerReads(c) => {
                let is_free = self.links[c].open_at_server && !self.waits(c) && !self.is_stuck(c);
                is_free && !self.links[c].up.is_empty()
            }
            Action::ClientReads(c) => self.links[c].open_at_client && !self.links[c].down.is_empty(),
            Action::Cut(c) => !self.links[c].cut && self.links[c].open_at_server,
            Action::ServerDropsIdle(c) => {
                let link = &self.links[c];
                let is_free = link.open_at_server && !self.waits(c) && !self.is_stuck(c);
                is_free && link.quiet >= READ_TIMEOUT
            }
            Action::ServerGivesUp(c) => self.links[c].stuck >= WRITE_TIMEOUT,
            Action::ServerFrees(c) => self.links[c].given_up && self.links[c].quiet >= READ_TIMEOUT,
            Action::ClientSeesEnd(c) => {
                let link = &self.links[c];
                link.open_at_client && (link.cut || (!link.open_at_server && link.down.is_empty()))
            }
        }
    }

    /// Whether a blocking request holds up those behind it.
    fn waits(&self, client: usize) -> bool {
        self.queue.contains(&client)
    }

    fn may_send(&self, client: usize, request: Request, rules: Rules) -> bool {
        let pending = &self.clients[client].pending;
        let weight = pending.iter().map(|pending| pending.request.weight()).sum::<u8>() + request.weight();
        let fits = !rules.replies_fit || weight <= BUFFER;
        self.links[client].open_at_client && pending.len() < PIPELINE && fits
    }

    pub(crate) fn apply(&mut self, action: Action, rules: Rules) {
        self.silence_loses = rules.silence_loses;
        match action {
            Action::Tick => self.tick(),
            Action::Sweep => self.evict(),
            Action::Try(c) => self.ask(c, Request::Try),
            Action::Wait(c) => self.ask(c, Request::Wait),
            Action::Cancel(c) => self.cancel(c, rules),
            Action::Renew(c) => self.renew(c),
            Action::Release(c) => {
                if let Aim::Holding { fence, left } = self.clients[c].aim {
                    self.clients[c].aim = Aim::Rest;
                    self.clients[c].unaware = if rules.released_for_all { 0 } else { left };
                    self.send(c, Request::Release(fence));
                }
            }
            Action::Look(c) => {
                self.clients[c].looks -= 1;
                self.send(c, Request::Stats);
            }
            Action::ServerReads(c) => self.server_reads(c, rules),
            Action::ClientReads(c) => self.client_reads(c, rules),
            Action::Cut(c) => {
                let link = &mut self.links[c];
                link.cut = true;
                link.up.clear();
                link.unread += link.down.drain(..).map(Reply::weight).sum::<u8>();
            }
            Action::ServerDropsIdle(c) => {
                self.links[c].dropped = true;
                self.disconnect(c, rules);
            }
            Action::ServerGivesUp(c) => self.give_up(c, rules),
            Action::ServerFrees(c) => self.disconnect(c, rules),
            Action::ClientSeesEnd(c) => {
                self.links[c].open_at_client = false;
                self.clients[c].pending.clear();
                self.clients[c].aim = Aim::Lost;
            }
        }
        self.simplify();
    }

    /// Forgets what makes no difference any more, so that equal worlds are seen to be equal.
    fn simplify(&mut self) {
        for (client, link) in self.clients.iter_mut().zip(&mut self.links) {
            if !matches!(client.aim, Aim::Holding { .. } | Aim::Confirming(_)) {
                client.unproven = 0;
            }
            if !link.open_at_client {
                (client.tries, client.signs, client.looks) = (0, 0, 0);
                link.down.clear();
            }
            if !link.open_at_client || !link.open_at_server {
                link.unread = 0;
            }
            if !link.open_at_server {
                link.quiet = if link.given_up { link.quiet } else { 0 };
            }
        }
        for client in 0..CLIENTS {
            if !self.is_stuck(client) {
                self.links[client].stuck = 0;
            }
        }
    }

    fn tick(&mut self) {
        let grow = |age: &mut u8, most| *age = (*age + 1).min(most);
        if let Some(holder) = &mut self.holder {
            holder.left = holder.left.saturating_sub(1);
        }
        for client in &mut self.clients {
            if let Aim::Holding { left, .. } = &mut client.aim {
                *left = left.saturating_sub(1);
            }
            client.unaware = client.unaware.saturating_sub(1);
            grow(&mut client.unproven, SILENCE);
            client.pending.iter_mut().for_each(|pending| grow(&mut pending.age, TTL));
        }
        self.links.iter_mut().for_each(|link| grow(&mut link.quiet, READ_TIMEOUT));
        for client in (0..CLIENTS).filter(|client| self.is_stuck(*client)).collect::<Vec<_>>() {
            grow(&mut self.links[client].stuck, WRITE_TIMEOUT);
        }
    }

    // What a client does.

    fn ask(&mut self, client: usize, request: Request) {
        self.clients[client].tries -= 1;
        self.clients[client].aim = Aim::Asking;
        self.send(client, request);
    }

    fn send(&mut self, client: usize, request: Request) {
        let pending = Pending { request, age: 0, deserted: false };
        self.clients[client].pending.push(pending);
        let link = &mut self.links[client];
        if !link.cut && link.open_at_server {
            link.up.push(request);
        }
    }

    /// The caller is gone. A wait is abandoned with its connection, anything else is still answered.
    fn cancel(&mut self, client: usize, rules: Rules) {
        let this = &mut self.clients[client];
        let Some(at) = this.pending.iter().rposition(|p| matches!(p.request, Request::Try | Request::Wait))
        else {
            return;
        };
        this.aim = Aim::Rest;
        this.pending[at].deserted = true;
        let waits = this.pending[at].request == Request::Wait;
        if !rules.replies_in_order {
            this.pending.remove(at);
        }
        let link = &mut self.links[client];
        if waits {
            self.clients[client].aim = Aim::Lost;
            self.clients[client].pending.clear();
            link.open_at_client = false;
            if !link.cut && link.open_at_server {
                link.up.push(Request::End);
            }
        }
    }

    fn renew(&mut self, client: usize) {
        match self.clients[client].aim {
            Aim::Confirming(fence) => self.send(client, Request::Renew(fence)),
            Aim::Holding { fence, .. } => {
                self.clients[client].signs -= 1;
                self.send(client, Request::Renew(fence));
            }
            _ => {}
        }
    }

    fn client_reads(&mut self, client: usize, rules: Rules) {
        let reply = self.links[client].down.remove(0);
        let this = &mut self.clients[client];
        if this.pending.is_empty() {
            // A reply that nobody asked for ends the connection.
            self.links[client].open_at_client = false;
            this.aim = Aim::Lost;
            return;
        }
        let Pending { request, age, deserted } = this.pending.remove(0);
        let left = if rules.deadline_from_sending { TTL.saturating_sub(age) } else { TTL };
        // A wait says no more than that the server was there when it answered.
        this.unproven = this.unproven.min(if request == Request::Wait { 0 } else { age });
        match (request, reply) {
            (Request::Try | Request::Wait, Reply::Granted(fence)) if deserted && rules.release_orphans => {
                self.send(client, Request::Release(fence));
            }
            (Request::Try | Request::Wait, _) if deserted => {}
            (Request::Try | Request::Wait, Reply::Granted(fence)) => {
                this.aim = match (age > 0, rules.confirm_late_grants) {
                    (true, true) if rules.deadline_from_sending => Aim::Confirming(fence),
                    (_, true) => Aim::Holding { fence, left },
                    (_, false) => Aim::Holding { fence, left: TTL },
                };
            }
            (Request::Try | Request::Wait, _) => this.aim = Aim::Rest,
            (Request::Renew(fence), Reply::Done) => match this.aim {
                Aim::Confirming(held) if held == fence => {
                    this.aim = Aim::Holding { fence, left };
                }
                Aim::Holding { fence: held, left: 1.. } if held == fence => {
                    this.aim = Aim::Holding { fence, left };
                }
                _ => {}
            },
            (Request::Renew(fence), _) => {
                if matches!(this.aim, Aim::Confirming(held) | Aim::Holding { fence: held, .. } if held == fence)
                {
                    this.aim = Aim::Rest;
                }
            }
            _ => {}
        }
    }

    // What the server does.

    fn server_reads(&mut self, client: usize, rules: Rules) {
        let request = self.links[client].up.remove(0);
        self.links[client].quiet = 0;
        if matches!(request, Request::Try | Request::Wait | Request::Renew(_)) {
            self.evict();
        }
        let holds = |fence| move |holder: &Holder| holder.client == client && holder.fence == fence;
        match request {
            Request::Try | Request::Wait if self.holder.is_none() && self.queue.is_empty() => {
                self.grant(client)
            }
            Request::Try => self.reply(client, Reply::Busy),
            Request::Wait => self.queue.push(client),
            Request::Renew(fence) => match self.holder.as_mut().filter(|holder| holds(fence)(holder)) {
                Some(holder) => {
                    holder.left = TTL;
                    self.reply(client, Reply::Done);
                }
                None => self.reply(client, Reply::Refused),
            },
            Request::Release(fence) => {
                let known = self.holder.as_ref().is_some_and(holds(fence));
                self.reply(client, if known { Reply::Done } else { Reply::Refused });
                if known {
                    self.hand_on();
                }
            }
            Request::Stats => self.reply(client, Reply::Table),
            Request::End => self.disconnect(client, rules),
        }
    }

    fn evict(&mut self) {
        if self.holder.is_some_and(|holder| holder.left == 0) {
            self.hand_on();
        }
    }

    fn hand_on(&mut self) {
        self.holder = None;
        if !self.queue.is_empty() {
            let next = self.queue.remove(0);
            self.grant(next);
        }
    }

    fn grant(&mut self, client: usize) {
        self.fence += 1;
        self.holder = Some(Holder { client, fence: self.fence, left: TTL });
        self.links[client].quiet = 0;
        self.reply(client, Reply::Granted(self.fence));
    }

    fn reply(&mut self, client: usize, reply: Reply) {
        let link = &mut self.links[client];
        if link.cut {
            link.unread += reply.weight();
        } else {
            link.down.push(reply);
        }
    }

    /// The client does not read what it asked for: no more is sent, and nothing more is read.
    fn give_up(&mut self, client: usize, rules: Rules) {
        if !rules.frees_late {
            return self.disconnect(client, rules);
        }
        let link = &mut self.links[client];
        (link.open_at_server, link.given_up, link.stuck) = (false, true, 0);
        link.up.clear();
        self.queue.retain(|waiter| *waiter != client);
    }

    /// The connection is gone: its waiter leaves, and what it held is handed on.
    fn disconnect(&mut self, client: usize, rules: Rules) {
        let link = &mut self.links[client];
        (link.open_at_server, link.given_up) = (false, false);
        link.up.clear();
        self.queue.retain(|waiter| *waiter != client);
        if self.holder.is_some_and(|holder| holder.client == client) {
            self.holder = None;
            if rules.hands_on {
                self.hand_on();
            }
        }
    }
}
