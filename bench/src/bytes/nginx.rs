//! nginx with a TLS 1.3 certificate on ECDSA P-256, as the peer that serves the same file.

use std::{
    fs,
    net::{TcpListener, TcpStream},
    path::{Path, PathBuf},
    process::Command,
};

use crate::child::Program;

/// An nginx that runs until this is dropped.
pub(super) struct Nginx {
    program: Program,
    ca: PathBuf,
    port: u16,
}

impl Nginx {
    /// Serves the files of `dir/www`.
    pub(super) fn start(dir: &Path) -> anyhow::Result<Self> {
        let key = rcgen::KeyPair::generate()?;
        let certificate = rcgen::CertificateParams::new(vec!["localhost".to_owned()])?.self_signed(&key)?;
        let ca = dir.join("nginx.crt");
        fs::write(&ca, certificate.pem())?;
        fs::write(dir.join("nginx.key"), key.serialize_pem())?;
        // Free now; nobody else binds it in the meantime on a quiet machine.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let conf = dir.join("nginx.conf");
        fs::write(&conf, config(dir, port))?;
        let mut command = Command::new("nginx");
        command.arg("-p").arg(dir).arg("-c").arg(&conf);
        let mut program = Program::start(&mut command, &dir.join("nginx.log"))?;
        program.wait_for("it listens", || TcpStream::connect(("127.0.0.1", port)).ok())?;
        Ok(Self { program, ca, port })
    }

    pub(super) fn pid(&self) -> u32 {
        self.program.pid()
    }

    /// The command that fetches the file to its standard output.
    pub(super) fn curl(&self) -> String {
        let (ca, port) = (self.ca.display(), self.port);
        format!(
            "curl -sSf --http1.1 --tlsv1.3 --cacert {ca} --resolve localhost:{port}:127.0.0.1 https://localhost:{port}/file"
        )
    }
}

/// One process, so that its CPU time is all in one place; a second worker would gain one connection nothing.
fn config(dir: &Path, port: u16) -> String {
    let dir = dir.display();
    format!(
        "daemon off;
master_process off;
pid {dir}/nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path {dir}/t1;
    proxy_temp_path {dir}/t2;
    fastcgi_temp_path {dir}/t3;
    uwsgi_temp_path {dir}/t4;
    scgi_temp_path {dir}/t5;
    sendfile on;
    server {{
        listen 127.0.0.1:{port} ssl;
        ssl_certificate {dir}/nginx.crt;
        ssl_certificate_key {dir}/nginx.key;
        ssl_protocols TLSv1.3;
        root {dir}/www;
    }}
}}
"
    )
}
