//! What other programs see of the table. `nft` reads every table whatever it is asked to do, so one
//! rule that it cannot read keeps people and firewalls from their own.

use std::process::{Command, Output};

use super::*;

/// What `nft` lists on this thread's machine; `None` where it is not installed.
fn listing() -> Option<Output> {
    match Command::new("nft").args(["list", "ruleset"]).output() {
        Ok(output) => Some(output),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            println!("nft is not installed: left out");
            None
        }
        Err(error) => panic!("nft: {error}"),
    }
}

fn text(output: &[u8]) -> String {
    String::from_utf8_lossy(output).into_owned()
}

#[test]
fn nft_can_list_every_rule() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        let pods = [
            Pod::attach(&network, "one").await,
            Pod::attach(&network, "two").await,
        ];
        let backends = pods.each_ref().map(|pod| pod.serve(80));
        let sticky = |frontend| ServicePort {
            affinity: Some(Duration::from_secs(10_800)),
            ..port(frontend, &backends)
        };
        let hidden = ServicePort {
            rewrite_source: true,
            ..port(tcp(None, 30_081), &backends)
        };
        let dropped = ServicePort {
            unserved: Unserved::Drop,
            ..port(tcp(None, 30_082), &[])
        };
        let ports = vec![
            port(tcp(Some(VIP), 80), &backends),
            port(tcp(Some(VIP), 79), &backends[..1]),
            sticky(tcp(Some(VIP), 81)),
            sticky(tcp(None, 30_080)),
            hidden,
            dropped,
            port(tcp(None, 30_083), &[]),
        ];
        network
            .change_services(service("default/web", ports))
            .await
            .expect("programs");
        let vip = |port| SocketAddr::from((VIP, port));
        get(vip(81)).expect("a client is remembered");
        let Some(listed) = listing() else {
            return;
        };
        assert!(listed.status.success(), "{}", text(&listed.stderr));
        assert_eq!(text(&listed.stderr), "");
        let rules = text(&listed.stdout);
        assert!(rules.contains("update @sticky {"), "{rules}");
        assert!(!rules.contains("invalid type"), "{rules}");
    });
}
