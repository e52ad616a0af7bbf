//! `upfleet-demo`: the tiny HTTP service that `upfleet dev` upgrades.
//!
//! Which version it is and how it behaves is written in a trailer behind its own executable, so that one program
//! gives releases good and bad with different digests. It uses the standard library only, and knows nothing of
//! Upfleet.
//!
//! The trailer: `\nUPFLEET-DEMO-TRAILER\n`, then lines `key=value`. Keys: `version`, `behaviour` (`good`, `exit`,
//! `exit-after`, `unhealthy-after`, `hang`, `wrong-port`) and `seconds`.

use std::{
    fs::File,
    io::{self, BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _},
    net::{TcpListener, TcpStream},
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

/// What stands before the trailer's lines.
const MARK: &str = "\nUPFLEET-DEMO-TRAILER\n";
/// The trailer lies within so many bytes of the executable's end.
const TAIL_BYTES: u64 = 1024;

/// How this copy behaves.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Trailer {
    version: String,
    behaviour: String,
    after: Duration,
}

fn main() -> ExitCode {
    match run() {
        Ok(code) => code,
        Err(error) => {
            eprintln!("hello: {error}");
            ExitCode::from(2)
        }
    }
}

fn run() -> io::Result<ExitCode> {
    let trailer = parse(&own_tail()?);
    let port = port()?;
    // All on one stream, so that the order of the lines is kept.
    eprintln!("hello {} starts", trailer.version);
    if trailer.behaviour == "exit" {
        eprintln!("hello {}: cannot open the table of greetings", trailer.version);
        eprintln!("hello {}: giving up", trailer.version);
        return Ok(ExitCode::FAILURE);
    }
    let port = if trailer.behaviour == "wrong-port" { 0 } else { port };
    let listener = TcpListener::bind(("127.0.0.1", port))?;
    eprintln!("hello {} listens on {}", trailer.version, listener.local_addr()?);
    let started = Instant::now();
    if trailer.behaviour == "exit-after" {
        let trailer = trailer.clone();
        thread::spawn(move || {
            thread::sleep(trailer.after);
            eprintln!("hello {}: out of greetings", trailer.version);
            std::process::exit(1);
        });
    }
    for stream in listener.incoming().flatten() {
        let trailer = trailer.clone();
        thread::spawn(move || {
            // A client that went away is no trouble of ours.
            let _ = answer(stream, &trailer, started);
        });
    }
    Ok(ExitCode::SUCCESS)
}

fn answer(mut stream: TcpStream, trailer: &Trailer, started: Instant) -> io::Result<()> {
    let mut request = String::new();
    BufReader::new(stream.try_clone()?).read_line(&mut request)?;
    let sick = trailer.behaviour == "unhealthy-after" && started.elapsed() >= trailer.after;
    if trailer.behaviour == "hang" {
        thread::sleep(Duration::from_secs(3600));
    }
    let path = request.split_whitespace().nth(1).unwrap_or("/");
    let (line, body) = match path {
        "/healthz" if sick => ("503 Service Unavailable", "the greetings have run out\n".to_owned()),
        "/healthz" => ("200 OK", "ok\n".to_owned()),
        "/" => ("200 OK", format!("hello {}\n", trailer.version)),
        _ => ("404 Not Found", "no such greeting\n".to_owned()),
    };
    if sick && path == "/healthz" {
        eprintln!("hello {}: the greetings have run out", trailer.version);
    }
    write!(stream, "HTTP/1.1 {line}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}", body.len())?;
    stream.flush()
}

/// The end of this executable. It is opened as the kernel started it, whatever lies at its path now.
fn own_tail() -> io::Result<Vec<u8>> {
    let mut file = File::open("/proc/self/exe")?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
    let mut tail = Vec::new();
    file.read_to_end(&mut tail)?;
    Ok(tail)
}

fn parse(tail: &[u8]) -> Trailer {
    let text = String::from_utf8_lossy(tail);
    let lines = text.rsplit_once(MARK).map_or("", |(_, lines)| lines);
    let value = |key: &str| {
        let of_line = |line: &str| Some(line.strip_prefix(key)?.strip_prefix('=')?.trim().to_owned());
        lines.lines().find_map(of_line)
    };
    Trailer {
        version: value("version").unwrap_or_else(|| "unversioned".to_owned()),
        behaviour: value("behaviour").unwrap_or_else(|| "good".to_owned()),
        after: Duration::from_secs_f64(value("seconds").and_then(|text| text.parse().ok()).unwrap_or(0.0)),
    }
}

fn port() -> io::Result<u16> {
    let arguments: Vec<String> = std::env::args().collect();
    let position = arguments.iter().position(|argument| argument == "--port");
    let text = position.and_then(|position| arguments.get(position + 1));
    let port = text.and_then(|text| text.parse().ok());
    port.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "usage: upfleet-demo --port PORT"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_trailer_is_read_from_the_end() {
        let mut file = b"\x7fELF... UPFLEET-DEMO-TRAILER as a constant ...".to_vec();
        file.extend_from_slice(MARK.as_bytes());
        file.extend_from_slice(b"version=1.3.0\nbehaviour=unhealthy-after\nseconds=1.5\n");
        let trailer = parse(&file);
        assert_eq!((trailer.version.as_str(), trailer.behaviour.as_str()), ("1.3.0", "unhealthy-after"));
        assert_eq!(trailer.after, Duration::from_millis(1500));
    }

    #[test]
    fn without_a_trailer_it_is_good() {
        assert_eq!(parse(b"ELF").behaviour, "good");
    }
}
