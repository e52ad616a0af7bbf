//! Clients of an HTTP service that notice everything: kept and new connections, one request at a time, none tried twice.

use std::{
    collections::BTreeMap,
    io::{self, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

/// How long an answer may take before it counts as failed.
const PATIENCE: Duration = Duration::from_secs(20);

/// What became of the requests.
#[derive(Debug, Default)]
pub struct Tally {
    /// Answers, by what they said.
    pub answers: BTreeMap<String, usize>,
    /// Requests without a whole answer, in words. Refused ones say so.
    pub failures: Vec<String>,
    /// The longest that an answer took.
    pub slowest: Duration,
}

impl Tally {
    pub fn answered(&self) -> usize {
        self.answers.values().sum()
    }

    fn add(&mut self, other: Self) {
        for (text, count) in other.answers {
            *self.answers.entry(text).or_default() += count;
        }
        self.failures.extend(other.failures);
        self.slowest = self.slowest.max(other.slowest);
    }
}

/// Clients that go on until they are told to stop.
pub struct Load {
    stop: Arc<AtomicBool>,
    clients: Vec<JoinHandle<Tally>>,
}

impl Load {
    /// `kept` clients that keep their connection, every third of them with pauses, and `fresh` that never do.
    pub fn start(address: SocketAddr, kept: usize, fresh: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let client = |number: usize| {
            let stop = stop.clone();
            let pause = Duration::from_millis(if number.is_multiple_of(3) { 150 } else { 0 });
            thread::spawn(move || {
                let mut client = Client { address, keeps: number < kept, connection: None };
                let mut tally = Tally::default();
                while !stop.load(Ordering::Relaxed) {
                    client.turn(&mut tally);
                    thread::sleep(pause);
                }
                tally
            })
        };
        let clients = (0..kept + fresh).map(client).collect();
        Self { stop, clients }
    }

    /// Lets each client finish its request.
    pub fn end(mut self) -> Tally {
        self.stop.store(true, Ordering::Relaxed);
        let mut all = Tally::default();
        for client in std::mem::take(&mut self.clients) {
            all.add(client.join().expect("a client has nothing to panic about"));
        }
        all
    }
}

impl Drop for Load {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
    }
}

/// What `path` says to a new connection.
pub fn get(address: SocketAddr, path: &str) -> io::Result<String> {
    Ok(exchange(&mut connect(address)?, path, false)?.0)
}

/// A connection of one's own.
pub fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let connection = TcpStream::connect(address)?;
    connection.set_read_timeout(Some(PATIENCE))?;
    connection.set_nodelay(true)?;
    Ok(connection)
}

/// One request on a connection: what the answer says, and whether it is the connection's last.
pub fn exchange(connection: &mut TcpStream, path: &str, keep: bool) -> io::Result<(String, bool)> {
    let wish = if keep { "" } else { "Connection: close\r\n" };
    connection.write_all(format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{wish}\r\n").as_bytes())?;
    let (mut text, mut buffer) = (String::new(), [0; 1024]);
    loop {
        let length = connection.read(&mut buffer)?;
        if length == 0 {
            return Err(io::Error::other(format!("closed after `{text}`")));
        }
        text.push_str(&String::from_utf8_lossy(&buffer[..length]));
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let head = head.to_ascii_lowercase();
        let field = |name: &str| head.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
        let whole: usize = field("content-length:").and_then(|text| text.parse().ok()).unwrap_or(usize::MAX);
        if body.len() < whole {
            continue;
        }
        if !head.starts_with("http/1.1 200 ") {
            return Err(io::Error::other(text));
        }
        return Ok((body.to_owned(), field("connection:") == Some("close")));
    }
}

struct Client {
    address: SocketAddr,
    keeps: bool,
    connection: Option<TcpStream>,
}

impl Client {
    fn turn(&mut self, tally: &mut Tally) {
        // As every client with a pool does: a connection that is known to be closed is not used.
        self.connection = self.connection.take().filter(is_open);
        let began = Instant::now();
        match self.request() {
            Ok(text) => *tally.answers.entry(text).or_default() += 1,
            Err(error) => {
                tally.failures.push(error.to_string());
                thread::sleep(Duration::from_millis(50));
            }
        }
        tally.slowest = tally.slowest.max(began.elapsed());
    }

    fn request(&mut self) -> io::Result<String> {
        let mut connection = self.connection.take().map_or_else(|| connect(self.address), Ok)?;
        let (text, last) = exchange(&mut connection, "/slow", self.keeps)?;
        self.connection = (self.keeps && !last).then_some(connection);
        Ok(text)
    }
}

/// Whether the other side has not closed a connection on which it has nothing to say.
fn is_open(connection: &TcpStream) -> bool {
    let looked = connection.set_nonblocking(true).and_then(|()| connection.peek(&mut [0]));
    let back = connection.set_nonblocking(false);
    matches!(looked, Err(error) if error.kind() == io::ErrorKind::WouldBlock) && back.is_ok()
}
