//! How much of a transfer may be on its way.
//!
//! TCP fills the queue in front of the narrowest part of the line until something is lost: a copy
//! over 20 Mbit/s and 40 ms makes every other round trip 100 to 150 ms long, and loses the
//! handshakes of other connections (1 s each). Nobody gains by that queue. So when the bytes of a
//! transfer take clearly longer than the line is long, only as many are let on their way as the line
//! itself holds: a download by the receiver's window, an upload by the pace of its sender. The rate
//! stays the same; if it does not, something else fills the queue or the line has changed, and TCP
//! has its own way again.

use std::io;
use std::net::TcpStream;
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::server::Server;

/// The least time between two looks: some round trips of a usual line, and at most ten looks in a
/// second.
const INTERVAL: Duration = Duration::from_millis(100);

/// Bytes that take so much longer than the line is long have met a queue. Wireless links hold back
/// what they send together for some milliseconds, and nobody notices less than this.
const JITTER: Duration = Duration::from_millis(10);

/// Room in the queue, so that the line never runs dry: the more, the later everything else.
const SLACK: Duration = Duration::from_millis(5);

/// A queue of an upload that is too long is to be gone within about this time: in two or three looks,
/// as each shows what the one before has done.
const DRAIN: Duration = Duration::from_millis(250);

/// How many looks in a row must tell of a queue.
const LATE: u32 = 2;

/// How many spans in a row must tell that a hold costs something.
const SLOW: u32 = 3;

/// A hold shows within so many looks, a second, or it was no queue of ours that was met: somebody
/// else's, or a server that sends in bursts, which look the same (a segment after a pause echoes the
/// time before it).
const IN_VAIN: u32 = 10;

/// Over so much time the rate of all flows is taken: a flow that has gone leaves its part of the line
/// to the others, who grow by an eighth with each look.
const SPAN: Duration = Duration::from_millis(500);

/// How long TCP has its own way after a hold that cost something: twice as long after each one that
/// did not last, as some lines need their queue (wireless ones send what they have gathered), up to
/// an hour.
const QUIET: Duration = Duration::from_secs(60);
const QUIET_MOST: u64 = 3600 * 1000;

/// So many looks, a minute, are a hold that was worth it.
const LASTING: u32 = 600;

/// After so long without a look nothing of an earlier transfer is in any queue.
const REST: Duration = Duration::from_secs(10);

/// What a connection begins with anyway (RFC 6928: ten segments).
const LEAST: u64 = 16 * 1024;

/// The larger direction of a transfer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    Down,
    Up,
}

/// What all transfers know of the line to the server.
#[derive(Debug)]
pub(crate) struct Route {
    born: Instant,
    /// The shortest round trip seen, in microseconds; 0: none yet.
    length: AtomicU32,
    /// Nothing is held before this, in milliseconds since `born`.
    quiet_until: AtomicU64,
    /// How long that was, in milliseconds; 0: not yet.
    quiet: AtomicU64,
    /// What goes each way.
    ways: [Way; 2],
}

/// All flows in one direction.
#[derive(Debug, Default)]
struct Way {
    /// Of the present span: its bytes, and its begin in microseconds since the route was born.
    bytes: AtomicU64,
    since: AtomicU64,
    /// Bytes in a second of the span before, and how many there were.
    rate: AtomicU64,
    spans: AtomicU32,
}

/// The flow of one transfer.
#[derive(Debug)]
pub(crate) struct Flow {
    server: Arc<Server>,
    direction: Direction,
    since: Option<Instant>,
    bytes: u64,
    /// What the peer had of an upload at the look before.
    arrived: u64,
    waited: Duration,
    hold: Hold,
}

/// When to hold a flow, and by how much. Pure.
#[derive(Debug, Default)]
enum Hold {
    #[default]
    Unknown,
    /// TCP has its way. `late` looks in a row told of a queue.
    Free {
        last: u64,
        late: u32,
    },
    Held(Held),
}

#[derive(Debug)]
struct Held {
    /// The rate of all flows when the hold began.
    before: u64,
    spans: u32,
    /// The highest rate of this one since, which fades.
    best: u64,
    /// So many spans in a row told that it has cost something.
    slow: u32,
    /// So many looks in a row still told of a queue.
    late: u32,
    looks: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Nothing,
    /// No more is to be on its way than this rate needs.
    Hold(u64),
    /// After a hold that lasted, or not.
    Release {
        has_lasted: bool,
    },
}

/// One look.
#[derive(Clone, Copy, Debug)]
struct Look {
    /// Bytes in a second, of this flow and, over the last span, of all.
    rate: u64,
    total: u64,
    spans: u32,
    /// The present and the shortest round trip.
    now: Duration,
    length: Duration,
}

impl Route {
    pub(crate) fn new() -> Self {
        let born = Instant::now();
        let [quiet_until, quiet] = Default::default();
        Self { born, length: AtomicU32::new(0), quiet_until, quiet, ways: Default::default() }
    }

    /// A round trip took so long. The kernel says all ones where none has been measured.
    fn note(&self, micros: u32) {
        if micros > 0 && micros < u32::MAX {
            let shorter = |old| (old == 0 || micros < old).then_some(micros);
            let _ = self.length.fetch_update(Ordering::Relaxed, Ordering::Relaxed, shorter);
        }
    }

    /// What a new connection has seen so far: its handshake, at least. While nothing else is on the
    /// way that is the length of the line, also if it was shorter before: the network may have changed.
    pub(crate) fn look_at(&self, socket: &TcpStream) {
        let Ok(told) = told_by(socket) else { return };
        if self.rests(Instant::now()) {
            self.length.store(0, Ordering::Relaxed);
        }
        self.note(told.tcpi_min_rtt);
    }

    fn rests(&self, now: Instant) -> bool {
        let now = now.saturating_duration_since(self.born);
        let last = self.ways.iter().map(|way| way.since.load(Ordering::Relaxed)).max();
        now.saturating_sub(Duration::from_micros(last.unwrap_or(0))) > REST
    }

    fn way(&self, direction: Direction) -> &Way {
        let [down, up] = &self.ways;
        match direction {
            Direction::Down => down,
            Direction::Up => up,
        }
    }

    fn length(&self) -> Duration {
        Duration::from_micros(self.length.load(Ordering::Relaxed).into())
    }

    fn is_quiet(&self, now: Instant) -> bool {
        let millis = now.saturating_duration_since(self.born).as_millis();
        millis < self.quiet_until.load(Ordering::Relaxed).into()
    }

    /// After a hold; did it last?
    fn be_quiet(&self, now: Instant, has_lasted: bool) {
        let before = if has_lasted { 0 } else { self.quiet.load(Ordering::Relaxed) };
        let least = u64::try_from(QUIET.as_millis()).unwrap_or(QUIET_MOST);
        let quiet = (before * 2).clamp(least, QUIET_MOST);
        self.quiet.store(quiet, Ordering::Relaxed);
        let now = now.saturating_duration_since(self.born).as_millis();
        let until = u64::try_from(now).unwrap_or(u64::MAX).saturating_add(quiet);
        self.quiet_until.store(until, Ordering::Relaxed);
    }
}

impl Way {
    /// So many more bytes have moved. The rate of the last span, and how many there were.
    fn add(&self, bytes: u64, now: Duration) -> (u64, u32) {
        let bytes = self.bytes.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let now = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let since = self.since.load(Ordering::Relaxed);
        let micros = now.saturating_sub(since);
        let elapsed = Duration::from_micros(micros);
        let swap = || self.since.compare_exchange(since, now, Ordering::Relaxed, Ordering::Relaxed);
        if elapsed >= SPAN && swap().is_ok() {
            self.bytes.fetch_sub(bytes, Ordering::Relaxed);
            // One with a rest in it tells nothing.
            if elapsed < SPAN * 2 {
                self.rate.store(bytes.saturating_mul(1_000_000) / micros, Ordering::Relaxed);
                self.spans.fetch_add(1, Ordering::Relaxed);
            }
        }
        (self.rate.load(Ordering::Relaxed), self.spans.load(Ordering::Relaxed))
    }
}

impl Flow {
    pub(crate) fn new(server: Arc<Server>, direction: Direction) -> Self {
        let (bytes, arrived, waited) = (0, 0, Duration::ZERO);
        let (since, hold) = (None, Hold::default());
        Self { server, direction, since, bytes, arrived, waited, hold }
    }

    /// Is it the line that this flow waits for? More connections would bring no more.
    pub(crate) fn fills_the_line(&self) -> bool {
        matches!(&self.hold, Hold::Held(held) if held.late == 0)
    }

    /// So many bytes have moved on, after a wait since `asked`.
    pub(crate) fn note(&mut self, count: u64, asked: Instant, socket: &TcpStream) {
        let now = Instant::now();
        let server = Arc::clone(&self.server);
        let route = server.route();
        let since = *self.since.get_or_insert(asked);
        self.bytes += count;
        self.waited += now.saturating_duration_since(asked);
        let length = route.length();
        let elapsed = now.saturating_duration_since(since);
        if elapsed < INTERVAL.max(length * 2) {
            return;
        }
        let micros = u64::try_from(elapsed.as_micros()).unwrap_or(u64::MAX).max(1);
        // Who does not wait for the line tells nothing about it.
        let is_waited_for = self.waited * 2 > elapsed;
        let Ok(told) = told_by(socket) else { return };
        route.note(told.tcpi_min_rtt);
        let (moved, trip) = match self.direction {
            Direction::Down => (self.bytes, told.tcpi_rcv_rtt),
            // Not what went into the buffer, which grows.
            Direction::Up => (told.tcpi_bytes_acked.saturating_sub(self.arrived), told.tcpi_rtt),
        };
        (self.since, self.bytes, self.waited) = (Some(now), 0, Duration::ZERO);
        self.arrived = told.tcpi_bytes_acked;
        let (total, spans) = route.way(self.direction).add(moved, now - route.born);
        if !is_waited_for || length.is_zero() {
            return;
        }
        let rate = moved.saturating_mul(1_000_000) / micros;
        let trip = Duration::from_micros(trip.into());
        let look = Look { rate, total, spans, now: trip, length };
        let is_quiet = route.is_quiet(now);
        match self.hold.order(look, is_quiet) {
            Order::Nothing => {}
            Order::Hold(best) => {
                log::trace!("{:?}: {look:?}: held", self.direction);
                self.limit(socket, look, best);
            }
            Order::Release { has_lasted } => {
                log::debug!("{:?}: {look:?}: let go", self.direction);
                if !is_quiet {
                    route.be_quiet(now, has_lasted);
                }
                self.release(socket);
            }
        }
    }

    /// Without it the transfer is as right: a system that refuses has its way.
    fn limit(&self, socket: &TcpStream, look: Look, best: u64) {
        let _ = match self.direction {
            Direction::Down => {
                let bytes = libc::c_int::try_from(look.window(best)).unwrap_or(libc::c_int::MAX);
                set(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, bytes)
            }
            Direction::Up => {
                set(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, look.pace(best))
            }
        };
    }

    fn release(&self, socket: &TcpStream) {
        let _ = match self.direction {
            Direction::Down => {
                set(socket, libc::IPPROTO_TCP, libc::TCP_WINDOW_CLAMP, libc::c_int::MAX)
            }
            Direction::Up => set(socket, libc::SOL_SOCKET, libc::SO_MAX_PACING_RATE, u64::MAX),
        };
    }
}

impl Hold {
    fn order(&mut self, look: Look, is_quiet: bool) -> Order {
        match self {
            Self::Held(held) => {
                // One that is held among others that are not would get next to nothing.
                if !is_quiet && held.goes_on(look) {
                    return Order::Hold(held.best);
                }
                let has_lasted = held.looks >= LASTING;
                *self = Self::Unknown;
                Order::Release { has_lasted }
            }
            _ if is_quiet => {
                *self = Self::Unknown;
                Order::Nothing
            }
            Self::Unknown => {
                *self = Self::Free { last: look.rate, late: 0 };
                Order::Nothing
            }
            Self::Free { last, late } => {
                // While it still becomes faster the queue may pass by itself.
                let has_levelled_off = look.rate / 5 * 4 <= *last;
                *late = if look.is_late() && has_levelled_off { *late + 1 } else { 0 };
                *last = look.rate;
                if *late < LATE {
                    return Order::Nothing;
                }
                *self = Self::Held(Held::by(look));
                Order::Hold(look.rate)
            }
        }
    }
}

impl Held {
    fn by(look: Look) -> Self {
        let Look { rate, total, spans, .. } = look;
        // The span before may have been one of slow start.
        Self { before: rate.max(total), spans, best: rate, slow: 0, late: 1, looks: 0 }
    }

    /// False: it costs more than it is worth.
    fn goes_on(&mut self, look: Look) -> bool {
        // A tenth of it fades within ten looks.
        self.best = look.rate.max(self.best - self.best / 100);
        self.looks = self.looks.saturating_add(1);
        self.late = if look.is_late() { self.late + 1 } else { 0 };
        if self.spans != look.spans {
            self.spans = look.spans;
            self.slow = if look.total < self.before / 8 * 7 { self.slow + 1 } else { 0 };
        }
        self.slow < SLOW && self.late <= IN_VAIN
    }
}

impl Look {
    fn is_late(&self) -> bool {
        self.now > self.length * 3 / 2 + JITTER
    }

    /// By so much slower than the line that the queue becomes as short as it is to be, and faster
    /// while it is shorter; by a half at most.
    fn pace(&self, rate: u64) -> u64 {
        let queue = self.now.saturating_sub(self.length);
        let share = |time: Duration| {
            let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
            rate.saturating_mul(micros) / u64::try_from(DRAIN.as_micros()).unwrap_or(1)
        };
        let slower = share(queue.saturating_sub(SLACK)).min(rate / 2);
        (rate - slower + share(SLACK.saturating_sub(queue))).max(LEAST)
    }

    /// What the line holds, and a little more.
    fn window(&self, rate: u64) -> u64 {
        let micros = u64::try_from((self.length + SLACK).as_micros()).unwrap_or(u64::MAX);
        (rate.saturating_mul(micros) / 1_000_000).max(LEAST)
    }
}

fn told_by(socket: &TcpStream) -> io::Result<libc::tcp_info> {
    // SAFETY: a plain structure of numbers, for which zeros are valid; an older kernel fills less.
    #[allow(unsafe_code)]
    let mut told: libc::tcp_info = unsafe { std::mem::zeroed() };
    let mut length = libc::socklen_t::try_from(size_of_val(&told)).unwrap_or(0);
    // SAFETY: the descriptor is open, as it is borrowed; the kernel writes no more than `length`
    // bytes to `told`; both live until the call returns (tcp(7)).
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::IPPROTO_TCP,
            libc::TCP_INFO,
            (&raw mut told).cast(),
            &raw mut length,
        )
    };
    if result == 0 { Ok(told) } else { Err(io::Error::last_os_error()) }
}

/// `value` is a number of the kind that the option takes.
fn set<T: Copy>(socket: &TcpStream, level: i32, option: i32, value: T) -> io::Result<()> {
    let length = libc::socklen_t::try_from(size_of_val(&value)).unwrap_or(0);
    // SAFETY: the descriptor is open, as it is borrowed; the kernel reads `length` bytes of
    // `value`, which lives until the call returns (setsockopt(2)).
    #[allow(unsafe_code)]
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), level, option, (&raw const value).cast(), length)
    };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MBYTE: u64 = 1_000_000;

    /// What is ordered at these rates and round trips (ms), on a line of 40 ms.
    fn orders(looks: &[(u64, u64)]) -> Vec<Order> {
        let (mut hold, mut spans) = (Hold::default(), 0);
        let millis = Duration::from_millis;
        let mut order = |(rate, now): &(u64, u64)| {
            let (now, length, total) = (millis(*now), millis(40), *rate);
            spans += 1;
            hold.order(Look { rate: *rate, total, spans, now, length }, false)
        };
        looks.iter().map(&mut order).collect()
    }

    #[test]
    fn a_queue_that_stays_is_made_short() {
        use Order::{Hold, Nothing};
        let rate = 5 * MBYTE / 2;
        assert_eq!(
            orders(&[(rate, 120), (rate, 120), (rate, 120), (rate, 45)]),
            [Nothing, Nothing, Hold(rate), Hold(rate)]
        );
        let grows = [(MBYTE, 80), (2 * MBYTE, 90), (4 * MBYTE, 100), (8 * MBYTE, 110)];
        assert_eq!(orders(&grows), [Nothing; 4], "slow start is not hindered");
        assert_eq!(orders(&[(rate, 45); 9]), [Nothing; 9], "no queue");
        assert_eq!(orders(&[(rate, 120), (rate, 120), (rate, 50), (rate, 120)]), [Nothing; 4]);
    }

    #[test]
    fn a_hold_follows_the_line_and_ends_if_it_costs() {
        let rate = 5 * MBYTE / 2;
        let held = [(rate, 120); 3];
        let faster = [&held[..], &[(3 * MBYTE, 45)]].concat();
        assert_eq!(orders(&faster)[3], Order::Hold(3 * MBYTE));
        let slower = [&held[..], &[(2 * MBYTE, 60); 3]].concat();
        assert_eq!(orders(&slower)[5], Order::Release { has_lasted: false });
        let in_vain = [&held[..], &[(rate, 120); 10]].concat();
        assert_eq!(orders(&in_vain)[11], Order::Hold(rate));
        assert_eq!(orders(&in_vain)[12], Order::Release { has_lasted: false });
        let once = [&held[..], &[(MBYTE, 60), (rate, 60), (MBYTE, 60), (rate, 60)]].concat();
        assert!(!orders(&once).contains(&Order::Release { has_lasted: false }));
    }

    #[test]
    fn how_much_and_how_fast() {
        let look = |now| Look {
            rate: 0,
            total: 0,
            spans: 0,
            now: Duration::from_millis(now),
            length: Duration::from_millis(40),
        };
        assert_eq!(look(120).window(5 * MBYTE / 2), 112_500, "2.5 MB/s for 45 ms");
        assert_eq!(look(120).window(1000), LEAST);
        assert_eq!(look(95).pace(MBYTE), MBYTE / 5 * 4, "50 ms too long, in 250 ms");
        assert_eq!(look(45).pace(MBYTE), MBYTE);
        assert_eq!(look(40).pace(MBYTE), MBYTE / 50 * 51);
        assert_eq!(look(900).pace(MBYTE), MBYTE / 2);
    }

    #[test]
    fn the_rate_of_all_is_that_of_a_span() {
        let (way, millis) = (Way::default(), Duration::from_millis);
        assert_eq!(way.add(100, millis(100)), (0, 0));
        assert_eq!(way.add(300, millis(400)), (0, 0));
        assert_eq!(way.add(100, millis(500)), (1000, 1));
        assert_eq!(way.add(50, millis(600)), (1000, 1));
        assert_eq!(way.add(50, millis(1000)), (200, 2));
        assert_eq!(way.add(50, millis(9000)), (200, 2), "a rest is no span");
        assert_eq!(way.add(100, millis(9500)), (200, 3));
    }

    #[test]
    fn who_is_held_is_let_go_with_the_others() {
        let (now, length) = (Duration::from_millis(45), Duration::from_millis(40));
        let mut hold = Hold::Held(Held {
            before: 100,
            spans: 1,
            best: 100,
            slow: 0,
            late: 0,
            looks: LASTING - 1,
        });
        let look = |spans| Look { rate: 90, total: 100, spans, now, length };
        assert_eq!(hold.order(look(1), false), Order::Hold(99));
        assert_eq!(hold.order(look(1), true), Order::Release { has_lasted: true });
        assert_eq!(hold.order(look(2), true), Order::Nothing);
    }

    #[test]
    fn a_connection_tells_how_long_the_line_is() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let route = Route::new();
        route.look_at(&socket);
        assert!(route.length() > Duration::ZERO && route.length() < Duration::from_secs(1));
        route.note(1);
        assert_eq!(route.length(), Duration::from_micros(1));
        let server = Arc::new(Server::new());
        for direction in [Direction::Down, Direction::Up] {
            let flow = Flow::new(Arc::clone(&server), direction);
            let (rate, total, spans) = (1000, 1000, 1);
            let (now, length) = (route.length(), route.length());
            flow.limit(&socket, Look { rate, total, spans, now, length }, rate);
            flow.release(&socket);
        }
        route.look_at(&socket);
        assert_eq!(route.length(), Duration::from_micros(1), "perhaps this one waited in a queue");
        let rests = route.born + REST + Duration::from_millis(1);
        assert!(route.rests(rests));
        route.way(Direction::Up).add(1, REST);
        assert!(!route.rests(rests));
        assert!(!route.is_quiet(Instant::now()));
        let now = route.born + Duration::from_secs(5);
        for (has_lasted, minutes) in [(false, 1), (false, 2), (false, 4), (true, 1), (true, 1)] {
            route.be_quiet(now, has_lasted);
            assert!(route.is_quiet(now + QUIET * minutes - Duration::from_millis(1)));
            assert!(!route.is_quiet(now + QUIET * minutes), "{minutes}");
        }
        for _ in 0..70 {
            route.be_quiet(now, false);
        }
        assert!(!route.is_quiet(now + Duration::from_millis(QUIET_MOST)));
    }
}
