//! What the names in a part of a statement mean.

use std::collections::HashMap;

use super::{
    rewrite::{Column, Table, Tables},
    tree::Node,
};

/// The names by which a part of a statement knows tables. None stands for something that the statement has made itself.
pub(super) struct Scope<'s> {
    names: HashMap<&'s str, Option<&'s Table>>,
    outer: Option<&'s Scope<'s>>,
    /// The table that is changed.
    pub(super) target: Option<&'s Table>,
}

impl<'s> Scope<'s> {
    pub(super) fn of(nodes: &[&'s Node<'s>], tables: &'s Tables, outer: Option<&'s Scope<'s>>) -> Self {
        let mut scope = Self { names: HashMap::new(), outer, target: None };
        let mut listing = false;
        for (at, node) in nodes.iter().enumerate() {
            let before = at.checked_sub(1).and_then(|before| nodes.get(before));
            match node {
                Node::Word("FROM" | "JOIN" | "USING") => {
                    listing = true;
                    let name = scope.bind(&nodes[at + 1..], tables);
                    if matches!(before, Some(Node::Word("DELETE"))) {
                        scope.target = name;
                    }
                }
                Node::Word("INTO") => scope.target = scope.bind(&nodes[at + 1..], tables),
                Node::Word("UPDATE") if !matches!(before, Some(Node::Word("FOR" | "KEY" | "DO"))) => {
                    scope.target = scope.bind(&nodes[at + 1..], tables);
                }
                Node::Word("WHERE" | "SET" | "SELECT" | "RETURNING" | "ORDER" | "GROUP" | "LIMIT" | "FOR") => {
                    listing = false;
                }
                Node::Comma if listing => drop(scope.bind(&nodes[at + 1..], tables)),
                _ => {}
            }
        }
        scope
    }

    /// Learns the name of what stands here: a table, or something made, each perhaps under another name.
    fn bind(&mut self, nodes: &[&'s Node<'s>], tables: &'s Tables) -> Option<&'s Table> {
        let mut nodes = nodes.iter().skip_while(|node| matches!(node, Node::Word("LATERAL" | "ONLY"))).peekable();
        let mut table = None;
        let mut known_as = None;
        if let Some(Node::Name(name)) = nodes.peek() {
            nodes.next();
            table = tables.get(*name);
            known_as = Some(*name);
        }
        if let Some(Node::Group(_)) = nodes.peek() {
            // A subquery, the values of a function, or the columns of an insertion.
            if known_as.is_some_and(|name| !tables.contains_key(name)) || known_as.is_none() {
                nodes.next();
            }
        }
        while let Some(Node::Word("AS" | "WITH" | "ORDINALITY")) = nodes.peek() {
            nodes.next();
        }
        if let Some(Node::Name(name)) = nodes.peek() {
            known_as = Some(*name);
            // What a statement has made and calls by a table's name has columns of that table.
            table = table.or_else(|| tables.get(*name));
        }
        if let Some(name) = known_as {
            self.names.insert(name, table);
        }
        table
    }

    /// The column that a name means, if statements are not written for it.
    pub(super) fn column(&self, table: &str, column: &str) -> Option<&'s Column> {
        match self.names.get(table) {
            Some(found) => found.and_then(|table| table.get(column)),
            None => self.outer.and_then(|outer| outer.column(table, column)),
        }
    }
}
