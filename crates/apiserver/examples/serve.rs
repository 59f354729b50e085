//! The API alone, on a store that forgets: `cargo run -p apiserver --example serve -- PORT DIR`
//! writes DIR/kubeconfig and serves until it is interrupted. For trying things with kubectl.

use std::error::Error;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use apiserver::{ApiServer, Config, tls_config};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let port: u16 = arguments.next().map_or(Ok(0), |port| port.parse())?;
    let directory = PathBuf::from(arguments.next().unwrap_or_else(|| ".".into()));
    let engine: Box<dyn store::DurableEngine> = match arguments.next() {
        Some(path) => Box::new(store::Sqlite::open(PathBuf::from(path))?),
        None => Box::new(store::Memory),
    };
    let store = store::Store::open(engine, apiserver::extract(), store::Options::default()).await?;
    let authority = Arc::new(pki::Authority::in_memory()?);
    let address = IpAddr::from(Ipv4Addr::LOCALHOST);
    let listener = tokio::net::TcpListener::bind((address, port)).await?;
    let server_names = pki::ServerNames {
        names: vec!["localhost".into()],
        addresses: vec![address],
    };
    let tls = tls_config(
        &authority,
        &authority.issue_server("apiserver", &server_names)?,
    )?;
    let admin = authority.issue_client("admin", Some("system:masters"))?;
    let kubeconfig = format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: try\ncontexts:\n- name: try\n  context: {{cluster: try, user: admin}}\nclusters:\n- name: try\n  cluster:\n    server: https://{}\n    certificate-authority-data: {}\nusers:\n- name: admin\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        listener.local_addr()?,
        STANDARD.encode(authority.certificate_pem()),
        STANDARD.encode(&admin.certificate_pem),
        STANDARD.encode(&admin.key_pem),
    );
    let path = directory.join("kubeconfig");
    std::fs::write(&path, kubeconfig)?;
    let begun = std::time::Instant::now();
    let token_key = Arc::new(pki::TokenKey::in_memory()?);
    let server = ApiServer::new(Config::new(store, authority, token_key)).await?;
    println!(
        "started in {:?}; kubectl --kubeconfig {}",
        begun.elapsed(),
        path.display()
    );
    let (trigger, drain) = lifecycle::drain();
    tokio::spawn(async move {
        tokio::signal::ctrl_c().await.ok();
        trigger.signal();
    });
    server.serve(listener, tls, drain).await;
    Ok(())
}
