//! Which services wait for which: circles, and the path along which a stop takes longest.
//!
//! Pure and iterative: a file may hold a chain as long as itself, which recursion would not survive. Nodes are
//! indices, edges point from a service to those it waits for.

use std::time::Duration;

/// Returns the circles: each as the nodes along it, from the one that comes first in the file. Circles that share a
/// node are reported once, by the first one found.
pub(crate) fn cycles(edges: &[Vec<usize>]) -> Vec<Vec<usize>> {
    let mut state = vec![State::New; edges.len()];
    let mut found: Vec<Vec<usize>> = Vec::new();
    let mut is_reported = vec![false; edges.len()];
    for start in 0..edges.len() {
        let mut path: Vec<(usize, usize)> = Vec::new();
        if state[start] == State::New {
            state[start] = State::OnPath;
            path.push((start, 0));
        }
        while let Some((node, next)) = path.last_mut() {
            let Some(&other) = edges[*node].get(*next) else {
                state[*node] = State::Done;
                path.pop();
                continue;
            };
            *next += 1;
            match state[other] {
                State::New => {
                    state[other] = State::OnPath;
                    path.push((other, 0));
                }
                State::OnPath => {
                    let from = path.iter().position(|(node, _)| *node == other).unwrap_or_default();
                    let circle: Vec<usize> = path[from..].iter().map(|(node, _)| *node).collect();
                    if !circle.iter().any(|node| is_reported[*node]) {
                        circle.iter().for_each(|node| is_reported[*node] = true);
                        found.push(from_smallest(circle));
                    }
                }
                State::Done => {}
            }
        }
    }
    found
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    OnPath,
    Done,
}

fn from_smallest(mut circle: Vec<usize>) -> Vec<usize> {
    let smallest = circle.iter().enumerate().min_by_key(|(_, node)| **node).map_or(0, |(at, _)| at);
    circle.rotate_left(smallest);
    circle
}

/// Returns the nodes so that each comes after all it waits for, in the file's order where that leaves a choice;
/// `None` when there is a circle.
pub(crate) fn order(edges: &[Vec<usize>]) -> Option<Vec<usize>> {
    let mut waits_for: Vec<usize> = edges.iter().map(Vec::len).collect();
    let mut waited_by = vec![Vec::new(); edges.len()];
    for (node, others) in edges.iter().enumerate() {
        others.iter().for_each(|other| waited_by[*other].push(node));
    }
    let free = |waits_for: &[usize], node: &usize| waits_for[*node] == 0;
    let mut ready: std::collections::BTreeSet<usize> =
        (0..edges.len()).filter(|node| free(&waits_for, node)).collect();
    let mut order = Vec::with_capacity(edges.len());
    while let Some(node) = ready.pop_first() {
        order.push(node);
        for other in &waited_by[node] {
            waits_for[*other] -= 1;
            if waits_for[*other] == 0 {
                ready.insert(*other);
            }
        }
    }
    (order.len() == edges.len()).then_some(order)
}

/// Returns the path with the largest sum of weights, from a service that nobody waits for down to the last one it
/// waits for: the order in which they stop. `None` when there is a circle or nothing at all.
pub(crate) fn heaviest_path(edges: &[Vec<usize>], weights: &[Duration]) -> Option<(Duration, Vec<usize>)> {
    let mut best: Vec<(Duration, Option<usize>)> = vec![(Duration::ZERO, None); edges.len()];
    for node in order(edges)? {
        let below = edges[node].iter().map(|other| (best[*other].0, *other)).max_by_key(|(sum, _)| *sum);
        let sum = weights[node].saturating_add(below.map_or(Duration::ZERO, |(sum, _)| sum));
        best[node] = (sum, below.map(|(_, other)| other));
    }
    let (start, (sum, _)) =
        best.iter().enumerate().max_by_key(|(node, (sum, _))| (*sum, usize::MAX - node))?;
    let path = std::iter::successors(Some(start), |node| best[*node].1);
    Some((*sum, path.collect()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn circles_start_at_the_first_service_of_the_file() {
        type Nodes = [&'static [usize]];
        let cases: [(&Nodes, &Nodes); 6] = [
            (&[], &[]),
            (&[&[], &[0], &[0, 1]], &[]),
            (&[&[1], &[0]], &[&[0, 1]]),
            (&[&[1], &[2], &[1]], &[&[1, 2]]),
            (&[&[2], &[], &[3], &[0], &[5], &[4]], &[&[0, 2, 3], &[4, 5]]),
            (&[&[1, 2], &[0], &[0]], &[&[0, 1]]),
        ];
        for (edges, circles) in cases {
            let edges: Vec<_> = edges.iter().map(|others| others.to_vec()).collect();
            assert_eq!(cycles(&edges), circles, "{edges:?}");
            assert_eq!(order(&edges).is_none(), !circles.is_empty(), "{edges:?}");
        }
    }

    #[test]
    fn a_chain_as_long_as_a_file_needs_no_stack() {
        let length = 300_000;
        let mut edges: Vec<Vec<usize>> = (1..length).map(|next| vec![next]).collect();
        edges.push(vec![]);
        assert_eq!(cycles(&edges), Vec::<Vec<usize>>::new());
        let weights = vec![Duration::from_secs(1); length];
        let (sum, path) = heaviest_path(&edges, &weights).expect("a path");
        assert_eq!((sum, path.len()), (Duration::from_secs(300_000), length));
        edges[length - 1] = vec![0];
        assert_eq!(cycles(&edges)[0].len(), length);
    }

    #[test]
    fn the_heaviest_path_runs_from_the_first_to_stop() {
        // 0 waits for 1 and 2, 1 for 3.
        let edges = [vec![1, 2], vec![3], vec![], vec![]];
        let seconds = |all: [u64; 4]| all.map(Duration::from_secs);
        assert_eq!(
            heaviest_path(&edges, &seconds([1, 2, 4, 3])),
            Some((Duration::from_secs(6), vec![0, 1, 3]))
        );
        assert_eq!(heaviest_path(&edges, &seconds([0, 2, 9, 3])), Some((Duration::from_secs(9), vec![0, 2])));
        assert_eq!(heaviest_path(&[], &[]), None);
    }

    proptest! {
        #[test]
        fn a_graph_has_an_order_exactly_when_it_has_no_circle(
            edges in (1_usize..12).prop_flat_map(|n| prop::collection::vec(prop::collection::vec(0..n, 0..4), n))
        ) {
            let circles = cycles(&edges);
            prop_assert_eq!(circles.is_empty(), order(&edges).is_some());
            for circle in circles {
                for (at, node) in circle.iter().enumerate() {
                    prop_assert!(edges[*node].contains(&circle[(at + 1) % circle.len()]));
                }
            }
        }
    }
}
