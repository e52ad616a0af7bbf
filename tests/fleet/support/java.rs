//! A JDK of this machine, and the small Java application that whole-fleet tests patch. Asserts nothing itself.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
    sync::{Mutex, OnceLock, PoisonError},
};

use upfleet_domain::digest::Digest;

use super::{process::run, skip::skip};

/// Answers one line per connection with what its classes say; the port and its own pid are in the file `port` of the
/// directory that it is given. `Price` is loaded at the start, `Tax` when somebody asks for it.
const SHOP: &str = r#"package shop;
import java.io.*; import java.net.*; import java.nio.file.*;
public class Shop {
  public static void main(String[] a) throws Exception {
    Price.say();
    ServerSocket server = new ServerSocket(0, 50, InetAddress.getByName("127.0.0.1"));
    String pid = new File("/proc/self").getCanonicalFile().getName();
    Path made = Paths.get(a[0], "port.new");
    Files.write(made, (server.getLocalPort() + " " + pid).getBytes());
    Files.move(made, Paths.get(a[0], "port"), StandardCopyOption.ATOMIC_MOVE);
    while (true) try (Socket socket = server.accept()) {
      String asked = new BufferedReader(new InputStreamReader(socket.getInputStream())).readLine();
      socket.getOutputStream().write(answer(asked).getBytes());
    } catch (IOException gone) { }
  }
  static String answer(String asked) {
    try {
      if (asked.equals("price")) return Price.say();
      if (asked.equals("tax")) return Tax.say();
      ClassLoader other = new URLClassLoader(new URL[] { new File(asked).toURI().toURL() }, null);
      return "other " + Class.forName("shop.Tax", true, other).getMethod("say").invoke(null);
    } catch (Throwable thrown) { return thrown.toString(); }
  }
}"#;

/// The newest installed JDK's home; `None`, and said so, where there is none.
pub fn jdk(test: &str) -> Option<&'static Path> {
    static NEWEST: OnceLock<Option<PathBuf>> = OnceLock::new();
    let newest =
        NEWEST.get_or_init(|| homes().filter_map(|home| Some((feature(&home)?, home))).max()?.1.into());
    if newest.is_none() {
        skip(test, "no JDK is installed");
    }
    newest.as_deref()
}

/// Where JDKs may be: told, of the system, or of the path.
fn homes() -> impl Iterator<Item = PathBuf> {
    let told = std::env::var_os("UPFLEET_JDKS").map(|dirs| std::env::split_paths(&dirs).collect::<Vec<_>>());
    let installed = fs::read_dir("/usr/lib/jvm").into_iter().flatten().flatten().map(|entry| entry.path());
    let path = std::env::var_os("PATH").unwrap_or_default();
    let on_path: Vec<_> = std::env::split_paths(&path)
        .filter_map(|dir| Some(dir.join("javac").canonicalize().ok()?.parent()?.parent()?.to_owned()))
        .collect();
    told.into_iter()
        .flatten()
        .chain(std::env::var_os("JAVA_HOME").map(PathBuf::from))
        .chain(installed)
        .chain(on_path)
}

/// 8, 11, 17 and so on; `None` where it is no JDK.
fn feature(home: &Path) -> Option<u32> {
    let said = Command::new(home.join("bin/javac")).arg("-version").output().ok()?;
    let text = format!("{}{}", String::from_utf8_lossy(&said.stdout), String::from_utf8_lossy(&said.stderr));
    let mut parts =
        text.split_whitespace().nth(1)?.split(['.', '-', '+', '_']).filter_map(|part| part.parse().ok());
    let first = parts.next()?;
    if first == 1 { parts.next() } else { Some(first) }
}

/// A class of the shop whose `say` answers `says`; `extra` is put into the class, `crash` makes it throw.
pub fn class(name: &str, says: &str, extra: &str) -> (String, String) {
    let body = if says == "crash" {
        "throw new IllegalStateException(\"cannot tell the price\");".to_owned()
    } else {
        format!("return \"{says}\";")
    };
    let text =
        format!("package shop; public class {name} {{ {extra} public static String say() {{ {body} }} }}");
    (format!("{name}.java"), text)
}

/// The classes of the shop with this price and this tax.
pub fn build(jdk: &Path, price: &str, tax: &str) -> PathBuf {
    compile(jdk, &[class("Price", price, ""), class("Tax", tax, "")])
}

/// The shop with these classes, compiled once for all runs.
pub fn compile(jdk: &Path, classes: &[(String, String)]) -> PathBuf {
    once(&format!("{}{SHOP}{classes:?}", jdk.display()), |dir| {
        let sources = tempfile::tempdir().unwrap();
        let mut javac = Command::new(jdk.join("bin/javac"));
        javac
            .args(["-J-Xmx128m", "-J-XX:TieredStopAtLevel=1", "--release", "8", "-Xlint:-options", "-d"])
            .arg(dir);
        for (name, text) in classes.iter().cloned().chain([("Shop.java".to_owned(), SHOP.to_owned())]) {
            let path = sources.path().join(name);
            fs::write(&path, text).unwrap();
            javac.arg(path);
        }
        run(&mut javac).success();
    })
}

/// A jar of these classes, the same bytes each time.
pub fn jar(jdk: &Path, classes: &Path) -> PathBuf {
    once(&format!("jar of {}", classes.display()), |dir| {
        run(Command::new(jdk.join("bin/jar"))
            .arg("cf")
            .arg(dir.join("app.jar"))
            .arg("-C")
            .arg(classes)
            .arg("."))
        .success();
    })
    .join("app.jar")
}

/// A directory named by `key` that `make` fills, once for all runs.
fn once(key: &str, make: impl FnOnce(&Path)) -> PathBuf {
    static MAKING: Mutex<()> = Mutex::new(());
    let _making = MAKING.lock().unwrap_or_else(PoisonError::into_inner);
    let cache = Path::new(env!("CARGO_TARGET_TMPDIR")).join("shop");
    let made = cache.join(Digest::of(key.as_bytes()).to_string().replace(':', "-"));
    if !made.exists() {
        fs::create_dir_all(&cache).unwrap();
        let dir = tempfile::tempdir_in(&cache).unwrap();
        make(dir.path());
        fs::rename(dir.keep(), &made).unwrap();
    }
    made
}
