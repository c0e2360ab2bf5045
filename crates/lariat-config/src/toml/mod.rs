//! `lariat.toml`: text to a draft of the stack.
//!
//! Two passes: [`syntax`] makes a tree in which every key and value has its place; the others walk it with the
//! expected types in hand. All keys are listed in one table each ([`node::Keys`]), with the names that other
//! programs use for them.

mod after;
mod isolation;
mod limits;
mod node;
mod ready;
mod service;
mod stack;
mod stop;
mod syntax;

use crate::diagnostic::Sink;
use crate::draft::StackDraft;

/// Reads a text; `None` when it is not TOML. What is wrong is in the sink either way.
pub(crate) fn read(text: &str, sink: &mut Sink) -> Option<StackDraft> {
    let tree = syntax::tree(text, sink)?;
    Some(stack::read(tree.get_ref(), sink))
}
