//! `upfleet user`: the certificates of people and CI jobs.
//!
//! A key is made where it is used and never leaves: the controller sees a certificate request only.

use std::{fs, path::PathBuf, time::Duration};

use clap::{Subcommand, ValueEnum};
use rustls::pki_types::{CertificateSigningRequestDer, pem::PemObject as _};
use upfleet_api::v1;

use super::{
    app::App,
    config::write_private,
    failure::{Failure, Result},
    page::pages,
    render::{Table, date, id},
    resource,
};
use crate::exit::Exit;

/// What a user may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(super) enum Role {
    /// Reads.
    Viewer,
    /// Drives rollouts, holds and cordons.
    Operator,
    /// Uploads, publishes, yanks.
    Publisher,
    /// Everything.
    Admin,
}

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Viewer => Self::Viewer,
            Role::Operator => Self::Operator,
            Role::Publisher => Self::Publisher,
            Role::Admin => Self::Admin,
        }
    }
}

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Issue a certificate. Makes the key here, unless a request made elsewhere is given.
    Issue {
        /// The user's name.
        name: String,
        /// What the user may do.
        #[arg(long, value_enum)]
        role: Role,
        /// How long the certificate is good, at most 825d.
        #[arg(long, default_value = "90d", value_parser = humantime::parse_duration, value_name = "DURATION")]
        ttl: Duration,
        /// A certificate request (PEM) made where the key is; only the certificate is written then.
        #[arg(long, value_name = "FILE")]
        csr: Option<PathBuf>,
        /// Where `NAME.crt`, `NAME.key` and `ca.crt` are written.
        #[arg(long, default_value = ".", value_name = "DIR")]
        dir: PathBuf,
    },
    /// List certificates.
    List,
    /// Revoke a user's certificates; live connections end within seconds.
    Revoke {
        /// The user.
        name: String,
        /// Only the certificate with this serial number (hex).
        #[arg(long, default_value = "", hide_default_value = true, value_name = "HEX")]
        serial: String,
    },
}

pub(super) async fn run(app: &App, command: Command) -> Result<Exit> {
    match command {
        Command::Issue { name, role, ttl, csr, dir } => issue(app, &name, role, ttl, csr, dir).await?,
        Command::List => {
            let client = app.connect().await?;
            let users = pages!(client.users(), list_users, v1::ListUsersRequest::default(), users);
            app.show_list("users", &users, |paint| {
                let mut table =
                    Table::new(&["USER", "ROLE", "SERIAL", "STATE", "EXPIRES", "BY"], "No users.");
                for user in &users {
                    let revoked = user.revoke_time.is_some();
                    table.row([
                        id(&user.name).to_owned(),
                        role_name(user.role()),
                        user.serial.clone(),
                        if revoked { paint.warn("REVOKED") } else { "GOOD".to_owned() },
                        date(user.expire_time.as_ref()),
                        id(&user.creator).to_owned(),
                    ]);
                }
                table.text(paint)
            });
        }
        Command::Revoke { name, serial } => {
            let client = app.connect_to_change().await?;
            app.confirm(&format!("revoke the certificates of {name}"))?;
            let message = app.globals.message.clone();
            let request = v1::RevokeUserRequest { name: resource("users", &name), serial, message };
            let users = client.users().revoke_user(request).await?.into_inner().users;
            app.show_list("users", &users, |_| {
                format!("{} certificates of {name} are revoked.", users.len())
            });
        }
    }
    Ok(Exit::Success)
}

/// A role's name as it is typed.
pub(super) fn role_name(role: v1::Role) -> String {
    role.as_str_name().trim_start_matches("ROLE_").to_ascii_lowercase()
}

async fn issue(
    app: &App,
    name: &str,
    role: Role,
    ttl: Duration,
    csr: Option<PathBuf>,
    dir: PathBuf,
) -> Result<()> {
    let (csr_der, key) = match &csr {
        Some(path) => {
            let request = CertificateSigningRequestDer::from_pem_file(path).map_err(|error| {
                Failure::usage(format!("could not read a certificate request from `{}`", path.display()))
                    .because(&error)
            })?;
            (request.to_vec(), None)
        }
        None => {
            let (request, key) = make_request()?;
            (request, Some(key))
        }
    };
    let client = app.connect_to_change().await?;
    let request = v1::IssueUserCertificateRequest {
        name: resource("users", name),
        role: v1::Role::from(role).into(),
        ttl: Some(ttl.into()),
        csr_der: csr_der.into(),
        request_id: app.request_id(),
    };
    let answer = client.users().issue_user_certificate(request).await?.into_inner();
    fs::create_dir_all(&dir).map_err(|error| Failure::io("create", &dir, &error))?;
    let write = |file: String, text: &str| -> Result<String> {
        let path = dir.join(file);
        write_private(&path, text.as_bytes())?;
        Ok(path.display().to_string())
    };
    let cert = write(format!("{name}.crt"), &answer.certificate_pem)?;
    let ca = write("ca.crt".to_owned(), &answer.ca_pem)?;
    let key = match key {
        Some(key) => write(format!("{name}.key"), &key)?,
        None => "KEY".to_owned(),
    };
    let (_, context) = app.context()?;
    let user = answer.user.unwrap_or_default();
    app.show(&user, |_| {
        format!(
            "{name} may act as {} until {}.\nMake a context of it:\n  upfleet context add {name} --address {} \
             --server-name {} --ca {ca} --cert {cert} --key {key}\n",
            role_name(user.role()),
            date(user.expire_time.as_ref()),
            context.address,
            context.server_name,
        )
    });
    Ok(())
}

/// A new P-256 key in PEM, and a request for a certificate of it in DER. The controller ignores the names
/// in the request.
fn make_request() -> Result<(Vec<u8>, String)> {
    let failed = |error: rcgen::Error| Failure::new(Exit::Internal, "could not make a key").because(&error);
    let key = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).map_err(failed)?;
    let request = rcgen::CertificateParams::default().serialize_request(&key).map_err(failed)?;
    Ok((request.der().to_vec(), key.serialize_pem()))
}
