//! Contexts: which controller to talk to, and as whom.
//!
//! `~/.config/upfleet/config.toml` (mode 0600) names contexts; each context's key, certificate and CA lie
//! beside it in `contexts/NAME/`. Nothing here connects.

use std::{
    collections::BTreeMap,
    env, fs, io,
    io::Write as _,
    os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// What went wrong with the file of contexts. The person at the terminal can mend all of these.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// Neither `UPFLEET_CONFIG`, `XDG_CONFIG_HOME` nor `HOME` is set.
    #[error("no place for the configuration: set `HOME` or `UPFLEET_CONFIG`")]
    NoHome,
    /// Reading or writing failed.
    #[error("could not {operation} `{}`", path.display())]
    Io {
        /// What was tried.
        operation: &'static str,
        /// On which file.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The file is no valid configuration.
    #[error("could not read `{}` as a list of contexts", path.display())]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong in it.
        source: Box<toml::de::Error>,
    },
    /// No such context.
    #[error("there is no context `{name}`; there is {known}")]
    Unknown {
        /// What was asked for.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Nothing was chosen.
    #[error("no context is selected")]
    NoneSelected,
    /// The name can't be a directory's.
    #[error("`{name}` can't be a context's name: use letters, digits, `.`, `_`, `-`")]
    BadName {
        /// The name.
        name: String,
    },
}

/// One controller, and who we are to it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Context {
    /// `host:port` of the controller's API.
    pub address: String,
    /// The name that its certificate must carry.
    pub server_name: String,
    /// The CA's certificate. Relative paths start at the configuration's directory.
    pub ca: PathBuf,
    /// Our certificate and its chain.
    pub cert: PathBuf,
    /// Our private key.
    pub key: PathBuf,
    /// Changes need `--confirm NAME`.
    #[serde(default)]
    pub protected: bool,
}

/// A context that is to be written, with its secrets.
#[derive(Clone, Debug)]
pub struct NewContext<'a> {
    /// `host:port` of the controller's API.
    pub address: String,
    /// The name that its certificate must carry.
    pub server_name: String,
    /// The CA's certificate in PEM.
    pub ca_pem: &'a str,
    /// The user's certificate and chain in PEM.
    pub cert_pem: &'a str,
    /// The user's private key in PEM.
    pub key_pem: &'a str,
    /// Changes need `--confirm NAME`.
    pub protected: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Stored {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    current: Option<String>,
    #[serde(default)]
    contexts: BTreeMap<String, Context>,
}

/// The file of contexts, read.
#[derive(Clone, Debug)]
pub struct Config {
    path: PathBuf,
    stored: Stored,
}

impl Config {
    /// Reads the file; a missing one has no contexts.
    ///
    /// # Errors
    /// Where it can't be read or is not valid.
    pub fn load() -> Result<Self, ConfigError> {
        Self::load_from(default_path()?)
    }

    /// Reads the file at `path`; a missing one has no contexts.
    ///
    /// # Errors
    /// Where it can't be read or is not valid.
    pub fn load_from(path: PathBuf) -> Result<Self, ConfigError> {
        let stored = match fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text)
                .map_err(|source| ConfigError::Parse { path: path.clone(), source: Box::new(source) })?,
            Err(error) if error.kind() == io::ErrorKind::NotFound => Stored::default(),
            Err(source) => return Err(ConfigError::Io { operation: "read", path, source }),
        };
        Ok(Self { path, stored })
    }

    /// Where the file is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The contexts by name.
    #[must_use]
    pub fn contexts(&self) -> &BTreeMap<String, Context> {
        &self.stored.contexts
    }

    /// The selected context's name.
    #[must_use]
    pub fn current(&self) -> Option<&str> {
        self.stored.current.as_deref()
    }

    /// The context called `name`, or else the selected one, with absolute paths.
    ///
    /// # Errors
    /// Where there is none of that name, or none is selected.
    pub fn resolve(&self, name: Option<&str>) -> Result<(String, Context), ConfigError> {
        let name = name.or(self.current()).ok_or(ConfigError::NoneSelected)?;
        let mut context = self.stored.contexts.get(name).cloned().ok_or_else(|| self.unknown(name))?;
        let directory = self.path.parent().unwrap_or(Path::new("."));
        for path in [&mut context.ca, &mut context.cert, &mut context.key] {
            *path = directory.join(&*path);
        }
        Ok((name.to_owned(), context))
    }

    /// Writes a context and its files, replacing one of that name, and selects it where none is selected
    /// or `select` is set.
    ///
    /// # Errors
    /// Where the name can't be a directory's, or writing fails.
    pub fn put(&mut self, name: &str, new: &NewContext<'_>, select: bool) -> Result<(), ConfigError> {
        let good = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        if name.is_empty() || name.starts_with('.') || !name.chars().all(good) {
            return Err(ConfigError::BadName { name: name.to_owned() });
        }
        let relative = Path::new("contexts").join(name);
        let directory = self.path.parent().unwrap_or(Path::new(".")).join(&relative);
        make_private_dir(&directory)?;
        for (file, text) in [("ca.crt", new.ca_pem), ("user.crt", new.cert_pem), ("user.key", new.key_pem)] {
            write_private(&directory.join(file), text.as_bytes())?;
        }
        let context = Context {
            address: new.address.clone(),
            server_name: new.server_name.clone(),
            ca: relative.join("ca.crt"),
            cert: relative.join("user.crt"),
            key: relative.join("user.key"),
            protected: new.protected,
        };
        self.stored.contexts.insert(name.to_owned(), context);
        if select || self.stored.current.is_none() {
            self.stored.current = Some(name.to_owned());
        }
        self.save()
    }

    /// Selects a context.
    ///
    /// # Errors
    /// Where there is none of that name, or writing fails.
    pub fn select(&mut self, name: &str) -> Result<(), ConfigError> {
        if !self.stored.contexts.contains_key(name) {
            return Err(self.unknown(name));
        }
        self.stored.current = Some(name.to_owned());
        self.save()
    }

    /// Protects a context, or lifts that.
    ///
    /// # Errors
    /// Where there is none of that name, or writing fails.
    pub fn protect(&mut self, name: &str, protected: bool) -> Result<(), ConfigError> {
        let unknown = self.unknown(name);
        self.stored.contexts.get_mut(name).ok_or(unknown)?.protected = protected;
        self.save()
    }

    /// Removes a context and its files; it is no error where there is none.
    ///
    /// # Errors
    /// Where writing fails.
    pub fn remove(&mut self, name: &str) -> Result<bool, ConfigError> {
        if self.stored.contexts.remove(name).is_none() {
            return Ok(false);
        }
        if self.current() == Some(name) {
            self.stored.current = None;
        }
        self.save()?;
        let directory = self.path.parent().unwrap_or(Path::new(".")).join("contexts").join(name);
        // The entry is gone; files that can't be removed are harmless to later commands.
        let _ = fs::remove_dir_all(directory);
        Ok(true)
    }

    fn unknown(&self, name: &str) -> ConfigError {
        let known: Vec<&str> = self.stored.contexts.keys().map(String::as_str).collect();
        let known = if known.is_empty() { "none".to_owned() } else { known.join(", ") };
        ConfigError::Unknown { name: name.to_owned(), known }
    }

    fn save(&self) -> Result<(), ConfigError> {
        make_private_dir(self.path.parent().unwrap_or(Path::new(".")))?;
        let text = toml::to_string_pretty(&self.stored).expect("a context has strings and a flag only");
        write_private(&self.path, text.as_bytes())
    }
}

/// Where the file of contexts is: `UPFLEET_CONFIG`, else the XDG place.
///
/// # Errors
/// Where the environment names no home.
pub fn default_path() -> Result<PathBuf, ConfigError> {
    let set = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(path) = set("UPFLEET_CONFIG") {
        return Ok(path);
    }
    let base = set("XDG_CONFIG_HOME").or_else(|| set("HOME").map(|home| home.join(".config")));
    Ok(base.ok_or(ConfigError::NoHome)?.join("upfleet/config.toml"))
}

fn make_private_dir(path: &Path) -> Result<(), ConfigError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| ConfigError::Io {
        operation: "create",
        path: path.to_owned(),
        source,
    })
}

/// Writes beside and renames, so that no reader ever sees half a file; only the owner can read it.
pub(crate) fn write_private(path: &Path, bytes: &[u8]) -> Result<(), ConfigError> {
    let write = || -> io::Result<()> {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let temporary = path.with_file_name(format!(".{name}.{}.tmp", std::process::id()));
        let mut file =
            fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    };
    write().map_err(|source| ConfigError::Io { operation: "write", path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    fn new() -> NewContext<'static> {
        NewContext {
            address: "localhost:7443".into(),
            server_name: "localhost".into(),
            ca_pem: "ca",
            cert_pem: "cert",
            key_pem: "key",
            protected: false,
        }
    }

    #[test]
    fn a_context_is_written_privately_and_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("up/config.toml");
        let mut config = Config::load_from(path.clone()).unwrap();
        assert!(matches!(config.resolve(None), Err(ConfigError::NoneSelected)));
        config.put("prod", &new(), false).unwrap();
        let config = Config::load_from(path.clone()).unwrap();
        let (name, context) = config.resolve(None).unwrap();
        assert_eq!(name, "prod");
        assert_eq!(fs::read_to_string(&context.key).unwrap(), "key");
        for file in [&path, &context.key] {
            assert_eq!(fs::metadata(file).unwrap().permissions().mode() & 0o777, 0o600, "{file:?}");
        }
    }

    #[test]
    fn contexts_are_selected_protected_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load_from(dir.path().join("config.toml")).unwrap();
        config.put("a", &new(), false).unwrap();
        config.put("b", &new(), false).unwrap();
        assert_eq!(config.current(), Some("a"));
        config.select("b").unwrap();
        config.protect("b", true).unwrap();
        assert!(config.resolve(None).unwrap().1.protected);
        assert!(config.select("c").unwrap_err().to_string().contains("there is a, b"));
        assert!(config.remove("b").unwrap());
        assert!(!config.remove("b").unwrap());
        assert_eq!(config.current(), None);
        assert!(!dir.path().join("contexts/b").exists());
    }

    #[test]
    fn a_name_can_not_leave_the_directory() {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config::load_from(dir.path().join("config.toml")).unwrap();
        for name in ["", "..", "a/b", ".x"] {
            assert!(matches!(config.put(name, &new(), false), Err(ConfigError::BadName { .. })), "{name}");
        }
    }
}
