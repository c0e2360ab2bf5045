use std::collections::BTreeMap;
use std::path::PathBuf;

use proptest::prelude::*;

use super::*;
use crate::service::spec::{CommandSpec, Dependency, Isolation, RestartSpec, StopSpec};

fn name(text: &str) -> ServiceName {
    ServiceName::new(text).unwrap()
}

fn service(own: &str, after: &[&str]) -> ServiceSpec {
    ServiceSpec {
        name: name(own),
        command: CommandSpec::Argv(vec!["true".into()]),
        dir: PathBuf::from("/"),
        env: BTreeMap::new(),
        port: None,
        after: after.iter().map(|a| Dependency { service: name(a), condition: Condition::Ready }).collect(),
        ready: None,
        stop: StopSpec::default(),
        restart: RestartSpec::default(),
        daemon: false,
        isolation: Isolation::None,
        limits: crate::service::spec::Limits::default(),
    }
}

fn graph(services: &[(&str, &[&str])]) -> Result<Graph, GraphError> {
    Graph::new(&services.iter().map(|(own, after)| service(own, after)).collect::<Vec<_>>())
}

#[test]
fn independent_services_keep_the_order_of_the_file() {
    let graph = graph(&[("c", &[]), ("a", &[]), ("b", &[])]).unwrap();
    assert_eq!(graph.start_order(), [0, 1, 2]);
    assert_eq!(graph.stop_order().collect::<Vec<_>>(), [2, 1, 0]);
}

#[test]
fn a_service_comes_after_what_it_names() {
    let graph = graph(&[("web", &["api"]), ("api", &["db", "cache"]), ("db", &[]), ("cache", &[])]).unwrap();
    assert_eq!(graph.start_order(), [2, 3, 1, 0]);
    assert_eq!(graph.dependents(2), [1]);
    assert_eq!(graph.dependencies(1), [(2, Condition::Ready), (3, Condition::Ready)]);
}

#[test]
fn cycles_are_named_from_where_they_close() {
    let text = |services: &[(&str, &[&str])]| graph(services).unwrap_err().to_string();
    assert_eq!(text(&[("a", &["a"])]), "services wait for each other: a → a");
    assert_eq!(text(&[("a", &["b"]), ("b", &["a"])]), "services wait for each other: a → b → a");
    // `x` leads into the cycle but is not part of it.
    assert_eq!(
        text(&[("x", &["a"]), ("a", &["b"]), ("b", &["c"]), ("c", &["a"])]),
        "services wait for each other: a → b → c → a"
    );
}

#[test]
fn names_that_are_nobodys_or_given_twice_are_errors() {
    assert_eq!(
        graph(&[("a", &["dbb"])]).unwrap_err().to_string(),
        "service `a` comes after `dbb`, which is not a service of this stack"
    );
    assert_eq!(graph(&[("a", &[]), ("a", &[])]).unwrap_err().to_string(), "two services are named `a`");
}

#[test]
fn closure_takes_what_the_chosen_come_after_and_nobody_else() {
    let graph =
        graph(&[("web", &["api"]), ("api", &["db"]), ("db", &[]), ("mail", &[]), ("jobs", &["db"])]).unwrap();
    assert_eq!(graph.closure(&[1]), [2, 1]);
    assert_eq!(graph.closure(&[3]), [3]);
    assert_eq!(graph.closure(&[4, 0]), [2, 1, 0, 4]);
    assert_eq!(graph.closure(&[]), [0_usize; 0]);
}

#[test]
fn longest_grace_is_the_heaviest_chain_not_the_sum() {
    let graph = graph(&[("web", &["api"]), ("api", &["db", "mail"]), ("db", &[]), ("mail", &[])]).unwrap();
    let grace = |place| Duration::from_secs([1, 2, 8, 10][place]);
    assert_eq!(graph.longest_grace(grace), (Duration::from_secs(13), vec![0, 1, 3]));
    let empty = Graph::new(&[]).unwrap();
    assert_eq!(empty.longest_grace(grace), (Duration::ZERO, vec![]));
    assert!(empty.is_empty());
}

#[test]
fn a_chain_of_many_thousands_does_not_exhaust_the_stack() {
    let count = 20_000;
    let names: Vec<String> = (0..count).map(|n| format!("s{n}")).collect();
    let services: Vec<ServiceSpec> = (0..count)
        .map(|n| if n + 1 < count { service(&names[n], &[&names[n + 1]]) } else { service(&names[n], &[]) })
        .collect();
    let graph = Graph::new(&services).unwrap();
    assert_eq!(graph.start_order().first(), Some(&(count - 1)));
    assert_eq!(graph.closure(&[0]).len(), count);
}

proptest! {
    /// Whatever the edges are: either an order that respects all of them, or a true cycle.
    #[test]
    fn any_edges_give_an_order_or_a_cycle(
        edges in proptest::collection::vec((0_usize..8, 0_usize..8), 0..16)
    ) {
        let names: Vec<String> = (0..8).map(|n| format!("s{n}")).collect();
        let services: Vec<ServiceSpec> = (0..8)
            .map(|n| {
                let after: Vec<&str> =
                    edges.iter().filter(|(from, _)| *from == n).map(|(_, to)| names[*to].as_str()).collect();
                service(&names[n], &after)
            })
            .collect();
        match Graph::new(&services) {
            Ok(graph) => {
                let at = |place: usize| graph.start_order().iter().position(|p| *p == place).unwrap();
                prop_assert_eq!(graph.len(), 8);
                for (from, to) in edges {
                    prop_assert!(at(to) < at(from));
                }
            }
            Err(GraphError::Cycle(cycle)) => {
                prop_assert!(cycle.len() >= 2);
                prop_assert_eq!(cycle.first(), cycle.last());
                for pair in cycle.windows(2) {
                    let place = |n: &ServiceName| names.iter().position(|o| o == n.as_str()).unwrap();
                    prop_assert!(edges.contains(&(place(&pair[0]), place(&pair[1]))));
                }
            }
            Err(other) => prop_assert!(false, "unexpected {}", other),
        }
    }
}
