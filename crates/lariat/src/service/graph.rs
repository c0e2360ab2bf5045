//! The dependencies of a stack as a graph: who starts after whom, who stops before whom.
//!
//! Pure. It knows names and edges, not what services do. A service is named here by its place in
//! [`StackSpec::services`](super::spec::StackSpec::services), so that tables can be plain vectors.

use std::collections::HashMap;
use std::time::Duration;

use super::spec::{Condition, ServiceName, ServiceSpec};

/// A service's place in the stack.
pub type Place = usize;

/// Why a stack's dependencies make no graph that can be started.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum GraphError {
    /// Two services have one name.
    #[error("two services are named `{0}`")]
    Duplicate(ServiceName),
    /// A dependency names a service that is not there.
    #[error("service `{service}` comes after `{dependency}`, which is not a service of this stack")]
    Unknown {
        /// Who names it.
        service: ServiceName,
        /// The name that is nobody's.
        dependency: ServiceName,
    },
    /// Services wait for each other. The first name is repeated at the end.
    #[error("services wait for each other: {}", arrows(.0))]
    Cycle(Vec<ServiceName>),
}

fn arrows(names: &[ServiceName]) -> String {
    names.iter().map(ServiceName::as_str).collect::<Vec<_>>().join(" → ")
}

/// The dependencies of a stack, known to be free of cycles.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Graph {
    /// For each service, what it comes after.
    before: Vec<Vec<(Place, Condition)>>,
    /// For each service, who comes after it.
    after: Vec<Vec<Place>>,
    /// INVARIANT: every service once, each after all that it comes after.
    order: Vec<Place>,
}

impl Graph {
    /// Builds the graph of `services`.
    ///
    /// # Errors
    /// [`GraphError`] for a name that is given twice, a dependency that is not there, and the first cycle in the
    /// order of the file.
    pub fn new(services: &[ServiceSpec]) -> Result<Self, GraphError> {
        let mut places = HashMap::new();
        for (place, service) in services.iter().enumerate() {
            if places.insert(&service.name, place).is_some() {
                return Err(GraphError::Duplicate(service.name.clone()));
            }
        }
        let mut before = vec![Vec::new(); services.len()];
        let mut after = vec![Vec::new(); services.len()];
        for (place, service) in services.iter().enumerate() {
            for dependency in &service.after {
                let other = *places.get(&dependency.service).ok_or_else(|| GraphError::Unknown {
                    service: service.name.clone(),
                    dependency: dependency.service.clone(),
                })?;
                before[place].push((other, dependency.condition));
                if !after[other].contains(&place) {
                    after[other].push(place);
                }
            }
        }
        let order = order(&before).map_err(|cycle| {
            GraphError::Cycle(cycle.into_iter().map(|place| services[place].name.clone()).collect())
        })?;
        Ok(Self { before, after, order })
    }

    /// Returns how many services there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.order.len()
    }

    /// Returns whether there is no service at all.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.order.is_empty()
    }

    /// Returns all services, each after everything it comes after; otherwise in the order of the file.
    #[must_use]
    pub fn start_order(&self) -> &[Place] {
        &self.order
    }

    /// Returns all services, each before everything it comes after.
    pub fn stop_order(&self) -> impl Iterator<Item = Place> + '_ {
        self.order.iter().rev().copied()
    }

    /// Returns what `place` comes after, and what has to hold of it.
    #[must_use]
    pub fn dependencies(&self, place: Place) -> &[(Place, Condition)] {
        &self.before[place]
    }

    /// Returns who comes directly after `place`.
    #[must_use]
    pub fn dependents(&self, place: Place) -> &[Place] {
        &self.after[place]
    }

    /// Returns the chosen services and everything they come after, however far, in start order.
    #[must_use]
    pub fn closure(&self, chosen: &[Place]) -> Vec<Place> {
        let mut is_in = vec![false; self.len()];
        let mut open = chosen.to_vec();
        while let Some(place) = open.pop() {
            if !std::mem::replace(&mut is_in[place], true) {
                open.extend(self.before[place].iter().map(|(other, _)| *other));
            }
        }
        self.order.iter().copied().filter(|place| is_in[*place]).collect()
    }

    /// Returns the chain of services, dependents first, whose grace periods add up to the most, and that sum: the
    /// longest that a polite stop can take, because services that do not wait for each other stop side by side.
    pub fn longest_grace(&self, grace: impl Fn(Place) -> Duration) -> (Duration, Vec<Place>) {
        // In start order everything that a service comes after was looked at before it.
        let mut best: Vec<(Duration, Option<Place>)> = vec![(Duration::ZERO, None); self.len()];
        for place in self.order.iter().copied() {
            let below = self.before[place].iter().map(|(other, _)| *other).max_by_key(|other| best[*other].0);
            let sum = below.map_or(Duration::ZERO, |other| best[other].0);
            best[place] = (sum.saturating_add(grace(place)), below);
        }
        let mut next = self.order.iter().copied().rev().max_by_key(|place| best[*place].0);
        let total = next.map_or(Duration::ZERO, |place| best[place].0);
        let mut chain = Vec::new();
        while let Some(place) = next {
            chain.push(place);
            next = best[place].1;
        }
        (total, chain)
    }
}

/// What a depth-first walk knows of a service.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Mark {
    New,
    Open,
    Done,
}

/// Orders services after what they come after, or names a cycle. Not recursive: a chain of thousands is no reason
/// to run out of stack.
fn order(before: &[Vec<(Place, Condition)>]) -> Result<Vec<Place>, Vec<Place>> {
    let mut marks = vec![Mark::New; before.len()];
    let mut order = Vec::with_capacity(before.len());
    for root in 0..before.len() {
        if marks[root] != Mark::New {
            continue;
        }
        marks[root] = Mark::Open;
        let mut path = vec![(root, 0)];
        while let Some((place, next)) = path.last_mut() {
            let place = *place;
            if let Some((other, _)) = before[place].get(*next).copied() {
                *next += 1;
                match marks[other] {
                    Mark::New => {
                        marks[other] = Mark::Open;
                        path.push((other, 0));
                    }
                    Mark::Open => {
                        let from = path.iter().position(|(p, _)| *p == other).unwrap_or(0);
                        let cycle = path[from..].iter().map(|(p, _)| *p).chain([other]);
                        return Err(cycle.collect());
                    }
                    Mark::Done => {}
                }
            } else {
                marks[place] = Mark::Done;
                order.push(place);
                path.pop();
            }
        }
    }
    Ok(order)
}

#[cfg(test)]
#[path = "graph_tests.rs"]
mod tests;
