//! throw-away
use base64::Engine as _;
use std::sync::Arc;
#[tokio::main]
async fn main() {
    let a = Arc::new(pki::Authority::in_memory().unwrap());
    let t = Arc::new(pki::TokenKey::in_memory().unwrap());
    let s = store::Store::open(
        Box::new(store::Memory::default()),
        apiserver::extract(),
        Default::default(),
    )
    .await
    .unwrap();
    let api = apiserver::ApiServer::new(apiserver::Config::new(s, a.clone(), t))
        .await
        .unwrap();
    let i = a
        .issue_server(
            "x",
            &pki::ServerNames {
                names: vec!["localhost".into()],
                addresses: vec!["127.0.0.1".parse().unwrap()],
            },
        )
        .unwrap();
    let tls = apiserver::tls_config(&a, &i).unwrap();
    let c = a
        .issue_client("kubernetes-admin", Some("system:masters"))
        .unwrap();
    let b = |x: &str| base64::engine::general_purpose::STANDARD.encode(x);
    std::fs::write("/tmp/wharf/b/dev.conf", format!(r#"{{"apiVersion":"v1","kind":"Config","current-context":"d","clusters":[{{"name":"d","cluster":{{"server":"https://127.0.0.1:28444","certificate-authority-data":"{}"}}}}],"users":[{{"name":"d","user":{{"client-certificate-data":"{}","client-key-data":"{}"}}}}],"contexts":[{{"name":"d","context":{{"cluster":"d","user":"d"}}}}]}}"#, b(a.certificate_pem()), b(&c.certificate_pem), b(&c.key_pem))).unwrap();
    let l = tokio::net::TcpListener::bind("127.0.0.1:28444")
        .await
        .unwrap();
    api.serve(l, tls, lifecycle::Drain::never()).await;
}
