//! Beside others that drop what they forward.

use std::process::Command;

use super::*;

const TABLE: &str = "filter";
const CHAIN: &str = "FORWARD";

/// What Docker does: `FORWARD` of iptables' table drops.
fn drop_by_default(table: &str, chain: &str) {
    let mut rules = nft::Rules::new(table);
    let hook = nft::Hook {
        kind: "filter",
        number: nft::FORWARD,
        priority: 0,
    };
    rules.add_chain(chain, Some(&hook));
    rules.set_policy_drop(chain);
    execute(rules);
}

fn execute(rules: nft::Rules) {
    let mut connection = Connection::open(libc::NETLINK_NETFILTER).expect("a socket");
    connection.execute(&rules.finish()).expect("changes");
}

/// Comments of the rules that are there.
fn comments() -> Vec<String> {
    let mut connection = Connection::open(libc::NETLINK_NETFILTER).expect("a socket");
    let found = nft::comments(&mut connection, TABLE, CHAIN).expect("lists");
    found.into_iter().map(|(_, comment)| comment).collect()
}

async fn until(wanted: impl Fn() -> bool) {
    let waited = async {
        while !wanted() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waited)
        .await
        .expect("it comes by itself");
}

const OURS: [&str; 2] = ["pods of wharf: 10.244.0.0/16"; 2];

#[test]
fn pods_reach_each_other_where_others_drop() {
    on_a_machine(|config| async move {
        drop_by_default(TABLE, CHAIN);
        let mut rules = nft::Rules::of_another(TABLE);
        rules.insert_rule(CHAIN, "somebody's own", |rule| {
            rule.verdict(nft::Verdict::Drop);
        });
        execute(rules);
        let network = Network::open(config.clone()).await.expect("opens");
        let (one, two) = (
            Pod::attach(&network, "one").await,
            Pod::attach(&network, "two").await,
        );
        let backend = one.serve(80);
        assert_eq!(two.get(backend).expect("past the other rule").name, "one");

        // Killed and started again, it finds its rules.
        drop(network);
        let network = Network::open(config.clone()).await.expect("opens again");
        assert_eq!(comments(), [OURS[0], OURS[1], "somebody's own"]);
        drop(network);

        // With another range, it has rules for that.
        let other = Config {
            pod_cidr: "10.244.0.0/17".parse().expect("a network"),
            ..config
        };
        let network = Network::open(other).await.expect("opens");
        let changed = "pods of wharf: 10.244.0.0/17";
        assert_eq!(comments(), [changed, changed, "somebody's own"]);
        network.close(false).await.expect("closes");
        assert_eq!(comments().len(), 3, "containers go on");
        network.close(true).await.expect("removes");
        assert_eq!(comments(), ["somebody's own"]);
    });
}

#[test]
fn rules_come_when_others_begin_to_drop_and_again_when_they_flush() {
    on_a_machine(|config| async move {
        let network = Network::open(config).await.expect("opens");
        drop_by_default(TABLE, CHAIN);
        until(|| comments() == OURS).await;
        for _ in 0..3 {
            let mut rules = nft::Rules::of_another(TABLE);
            rules.add_table();
            rules.flush_chain(CHAIN);
            execute(rules);
            until(|| comments() == OURS).await;
        }
        let mut rules = nft::Rules::new(TABLE);
        rules.delete_table();
        execute(rules);
        drop_by_default(TABLE, CHAIN);
        until(|| comments() == OURS).await;
        // Removed on purpose, they stay away.
        network.close(true).await.expect("removes");
        tokio::task::yield_now().await;
        assert_eq!(comments(), Vec::<String>::new());
    });
}

#[test]
fn a_chain_that_lets_pass_is_left_alone() {
    on_a_machine(|config| async move {
        let mut rules = nft::Rules::new(TABLE);
        let hook = nft::Hook {
            kind: "filter",
            number: nft::FORWARD,
            priority: 0,
        };
        rules.add_chain(CHAIN, Some(&hook));
        execute(rules);
        let network = Network::open(config).await.expect("opens");
        assert_eq!(comments(), Vec::<String>::new());
        network.close(true).await.expect("removes");
    });
}

#[test]
fn firewalls_are_named_and_left_alone() {
    on_a_machine(|config| async move {
        assert_eq!(forward_drops().expect("lists"), []);
        drop_by_default(TABLE, CHAIN);
        assert_eq!(forward_drops().expect("lists"), [], "it is opened");
        drop_by_default("firewall", "forward");
        let network = Network::open(config).await.expect("opens");
        let expected = ("ip firewall".to_owned(), "forward".to_owned());
        assert_eq!(forward_drops().expect("lists"), [expected]);
        network.close(true).await.expect("removes");
    });
}

#[test]
fn iptables_can_print_the_rules_and_take_them_out() {
    on_a_machine(|config| async move {
        let iptables = |arguments: &[&str]| Command::new("iptables-nft").args(arguments).output();
        let made = iptables(&["-P", CHAIN, "DROP"]).expect("`cargo xtask test` installs iptables");
        assert!(made.status.success());
        let network = Network::open(config).await.expect("opens");
        let printed = iptables(&["-S", CHAIN]).expect("runs");
        let printed = String::from_utf8_lossy(&printed.stdout).into_owned();
        // Some versions show the comment between the two.
        let rules: Vec<(&str, &str)> = printed
            .lines()
            .skip(1)
            .filter_map(|rule| Some((rule.get(..28)?, rule.rsplit_once(' ')?.1)))
            .collect();
        let expected = [
            ("-A FORWARD -s 10.244.0.0/16 ", "ACCEPT"),
            ("-A FORWARD -d 10.244.0.0/16 ", "ACCEPT"),
        ];
        assert_eq!(rules, expected, "{printed}");
        let taken = iptables(&["-D", CHAIN, "2"]).expect("runs");
        assert!(taken.status.success(), "{taken:?}");
        until(|| comments() == OURS).await;
        network.close(true).await.expect("removes");
    });
}
