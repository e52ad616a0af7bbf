//! A load of HTTP/1.1 requests from one thread on one core: kept-alive connections and new ones, each with one request
//! at a time. Counts every request that got no whole answer, and never tries one again.

use std::{
    cell::RefCell,
    io,
    net::SocketAddr,
    rc::Rc,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::Context as _;
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    task::LocalSet,
    time::{sleep, timeout},
};

/// How long an answer may take.
const PATIENCE: Duration = Duration::from_secs(10);
/// After a request that failed, its client waits as long as an answer takes, so that failing is not faster than serving.
const PAUSE: Duration = Duration::from_millis(200);
/// The longest answer that is expected.
const ANSWER: usize = 4096;

/// What a load consists of.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// Where the service listens.
    pub address: SocketAddr,
    /// Clients that keep their connection.
    pub kept: usize,
    /// Clients with a new connection for each request.
    pub fresh: usize,
    /// Of those that keep it, one in so many pauses between its requests, from 0 to a second; 0: none does.
    pub idle_one_in: usize,
}

/// What became of a load's requests.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Counts {
    /// Answered with 200, in microseconds each.
    pub answered: Vec<f64>,
    /// Connections that were refused.
    pub refused: u64,
    /// Requests whose connection ended without a whole answer, or could not be made.
    pub broken: u64,
    /// Requests without an answer in ten seconds.
    pub late: u64,
    /// Answers with another code than 200.
    pub wrong: u64,
    /// Kept connections that the service closed between two requests, seen before the next was sent. Not a failure.
    pub reopened: u64,
    /// The last thing that went wrong, in words.
    pub last: String,
    /// How long it went on.
    pub took: Duration,
    /// CPU time of the generator.
    pub cpu: Duration,
}

impl Counts {
    /// All requests.
    #[must_use]
    pub fn requests(&self) -> u64 {
        self.answered.len() as u64 + self.failed() + self.refused
    }

    /// Those that failed otherwise than by being refused.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.broken + self.late + self.wrong
    }

    /// Answers per second.
    #[must_use]
    pub fn rate(&self) -> f64 {
        self.answered.len() as f64 / self.took.as_secs_f64().max(0.001)
    }

    /// The milliseconds that a part `at` (0 to 1) of the answers did not exceed.
    #[must_use]
    pub fn millis(&self, at: f64) -> f64 {
        crate::report::percentile(&self.answered, at).unwrap_or(0.0) / 1e3
    }
}

/// A load that goes on until it is ended.
pub struct Load {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<anyhow::Result<Counts>>,
}

impl Load {
    /// Starts it on a core; its clients begin within the first 200 ms.
    #[must_use]
    pub fn start(shape: Shape, core: Option<usize>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let own = stop.clone();
        let thread = std::thread::spawn(move || {
            if let Some(core) = core {
                pin(core)?;
            }
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            let counts = LocalSet::new().block_on(&runtime, clients(shape, own));
            Ok(counts)
        });
        Self { stop, thread }
    }

    /// Lets each client finish its request, and gives what became of all.
    ///
    /// # Errors
    /// Where the generator itself failed.
    pub fn end(self) -> anyhow::Result<Counts> {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().map_err(|_| anyhow::anyhow!("the load generator fell over"))?
    }
}

/// The cores that this process may run on, lowest first.
///
/// # Errors
/// Where the kernel does not say.
pub fn cores() -> anyhow::Result<Vec<usize>> {
    let set = sched_getaffinity(None).context("could not read on which cores this may run")?;
    Ok((0..CpuSet::MAX_CPU).filter(|core| set.is_set(*core)).collect())
}

/// Keeps this thread, and what it starts, on one core.
///
/// # Errors
/// Where the kernel refuses.
pub fn pin(core: usize) -> anyhow::Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(None, &set).with_context(|| format!("could not stay on core {core}"))
}

async fn clients(shape: Shape, stop: Arc<AtomicBool>) -> Counts {
    let counts = Rc::new(RefCell::new(Counts::default()));
    let began = Instant::now();
    let all = shape.kept + shape.fresh;
    let tasks: Vec<_> = (0..all)
        .map(|number| {
            let mut client = Client::new(shape, number, counts.clone());
            // Spread over the time that an answer takes, so that they don't come in waves.
            let first = PAUSE.mul_f64(number as f64 / all as f64);
            let stop = stop.clone();
            tokio::task::spawn_local(async move {
                sleep(first).await;
                while !stop.load(Ordering::Relaxed) {
                    client.turn().await;
                }
            })
        })
        .collect();
    for task in tasks {
        // A client has nothing to panic about, and none is cancelled.
        let _ = task.await;
    }
    let mut counts = counts.take();
    counts.took = began.elapsed();
    let cpu = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    counts.cpu = Duration::new(cpu.tv_sec.cast_unsigned(), u32::try_from(cpu.tv_nsec).unwrap_or(0));
    counts
}

/// Why a request got no whole answer.
#[derive(Debug)]
enum Failure {
    Refused,
    Broken(String),
    Late,
    Wrong(String),
}

/// One client.
struct Client {
    shape: Shape,
    number: usize,
    keeps: bool,
    connection: Option<TcpStream>,
    turns: usize,
    counts: Rc<RefCell<Counts>>,
}

impl Client {
    fn new(shape: Shape, number: usize, counts: Rc<RefCell<Counts>>) -> Self {
        Self { shape, number, keeps: number < shape.kept, connection: None, turns: 0, counts }
    }

    /// One request, and what it takes between two.
    async fn turn(&mut self) {
        self.turns += 1;
        if self.keeps && self.shape.idle_one_in > 0 && self.number.is_multiple_of(self.shape.idle_one_in) {
            // No two in step; any numbers without a common pattern do.
            let millis = (self.number * 7919 + self.turns * 104_729) % 1000;
            sleep(Duration::from_millis(millis as u64)).await;
        }
        // As every client with a pool does: a connection that is known to be closed is not used.
        if self.connection.as_ref().is_some_and(is_closed) {
            self.connection = None;
            self.counts.borrow_mut().reopened += 1;
        }
        let began = Instant::now();
        let done = timeout(PATIENCE, self.request()).await.unwrap_or(Err(Failure::Late));
        if self.count(done, began.elapsed()) {
            return;
        }
        self.connection = None;
        sleep(PAUSE).await;
    }

    /// Counts what became of a request; says whether it was answered.
    fn count(&self, done: Result<(), Failure>, took: Duration) -> bool {
        let mut counts = self.counts.borrow_mut();
        let Err(failure) = done else {
            counts.answered.push(took.as_secs_f64() * 1e6);
            return true;
        };
        counts.last = match failure {
            Failure::Refused => {
                counts.refused += 1;
                "refused".to_owned()
            }
            Failure::Broken(why) => {
                counts.broken += 1;
                why
            }
            Failure::Late => {
                counts.late += 1;
                "no answer in time".to_owned()
            }
            Failure::Wrong(answer) => {
                counts.wrong += 1;
                answer
            }
        };
        false
    }

    async fn request(&mut self) -> Result<(), Failure> {
        let broken = |error: io::Error| Failure::Broken(error.to_string());
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => {
                let connection =
                    TcpStream::connect(self.shape.address).await.map_err(|error| match error.kind() {
                        io::ErrorKind::ConnectionRefused => Failure::Refused,
                        _ => broken(error),
                    })?;
                connection.set_nodelay(true).map_err(broken)?;
                connection
            }
        };
        let request: &[u8] = match self.keeps {
            true => b"GET /slow HTTP/1.1\r\nHost: shop\r\n\r\n",
            false => b"GET /slow HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n",
        };
        connection.write_all(request).await.map_err(broken)?;
        let mut buffer = [0; ANSWER];
        let mut length = 0;
        let answer = loop {
            match connection.read(&mut buffer[length..]).await {
                Ok(0) => return Err(Failure::Broken(format!("closed after {length} bytes"))),
                Ok(more) => length += more,
                Err(error) => return Err(broken(error)),
            }
            if let Some(answer) = Answer::parse(&buffer[..length])? {
                break answer;
            }
        };
        if self.keeps && !answer.closes {
            self.connection = Some(connection);
        }
        Ok(())
    }
}

/// Whether the other side has closed a connection on which it has nothing to say.
fn is_closed(connection: &TcpStream) -> bool {
    let read = connection.try_read(&mut [0]);
    !matches!(read, Err(error) if error.kind() == io::ErrorKind::WouldBlock)
}

/// What counts of a whole answer.
#[derive(Debug, PartialEq, Eq)]
struct Answer {
    /// The service closes the connection after it.
    closes: bool,
}

impl Answer {
    /// `None` where it is not whole yet.
    fn parse(bytes: &[u8]) -> Result<Option<Self>, Failure> {
        let Some(end) = bytes.windows(4).position(|part| part == b"\r\n\r\n") else {
            return Ok(None);
        };
        let wrong = || Failure::Wrong(String::from_utf8_lossy(bytes).into_owned());
        let head = std::str::from_utf8(&bytes[..end]).map_err(|_| wrong())?;
        let field = |wanted: &str| {
            let mut fields = head.lines().filter_map(|line| line.split_once(':'));
            fields.find(|(name, _)| name.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.trim())
        };
        let length: usize =
            field("content-length").and_then(|length| length.parse().ok()).ok_or_else(wrong)?;
        if !head.starts_with("HTTP/1.1 200 ") {
            return Err(wrong());
        }
        let closes = field("connection").is_some_and(|value| value.eq_ignore_ascii_case("close"));
        Ok((bytes.len() >= end + 4 + length).then_some(Self { closes }))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, Write as _},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn an_answer_is_whole_or_not() {
        let whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: Close\r\n\r\nhi";
        assert_eq!(Answer::parse(whole).unwrap(), Some(Answer { closes: true }));
        assert_eq!(Answer::parse(&whole[..whole.len() - 1]).unwrap(), None);
        assert_eq!(Answer::parse(&whole[..30]).unwrap(), None);
        assert!(Answer::parse(b"HTTP/1.1 503 No\r\nContent-Length: 0\r\n\r\n").is_err());
    }

    /// Answers each first request of a connection, and ends the connection at the second.
    fn rude_server() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for connection in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let mut connection = connection;
                    let mut buffer = [0; 1024];
                    let _ = connection.read(&mut buffer);
                    let _ = connection.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi");
                    let _ = connection.read(&mut buffer);
                });
            }
        });
        address
    }

    #[test]
    fn what_fails_is_counted() {
        let shape = Shape { address: rude_server(), kept: 2, fresh: 2, idle_one_in: 0 };
        let load = Load::start(shape, None);
        std::thread::sleep(Duration::from_millis(900));
        let counts = load.end().unwrap();
        assert!(counts.answered.len() > 4 && counts.broken >= 2, "{counts:?}");
        assert_eq!((counts.refused, counts.late, counts.wrong), (0, 0, 0), "{counts:?}");
        let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let load = Load::start(Shape { address: nobody, ..shape }, None);
        std::thread::sleep(Duration::from_millis(300));
        let counts = load.end().unwrap();
        assert!(counts.refused >= 4 && counts.answered.is_empty(), "{counts:?}");
    }
}
