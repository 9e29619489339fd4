//! Statements fitted to columns of other types.
//!
//! Every read of such a column becomes an expression of the type that the statement expects, and every value that is written into it
//! is turned into its type. A read is known by the name of its table before it (`t.rank`), so a statement names every table that it
//! reads columns of: a bare name is one of what the statement itself has made.

use std::collections::HashMap;

use super::{
    cast::{self, Family, Kind},
    scope::Scope,
    tree::{self, Node},
};

/// A column that statements are not written for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Column {
    pub(super) kind: Kind,
    pub(super) family: Family,
    /// Of which table it is, and its name.
    pub(super) name: (String, String),
    /// Rows are found by it, and it has one spelling: it is compared as it is, through its index.
    pub(super) key: bool,
    /// It says by being there in which part of its life a row is.
    pub(super) presence: bool,
    /// It moves from table to table as it is, both having the same type.
    pub(super) carried: bool,
    /// Readers of a result decode its type: they tell better than an expression what is wrong with a value.
    pub(super) decoded: bool,
    /// What becomes of it in a result that is put together from both tables of tasks.
    pub(super) together: Together,
}

/// A column in a result that is put together from several tables, and so has one type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Together {
    /// Both tables have the same type.
    Same,
    /// They have not, and text can be decoded.
    Text,
    /// Only the expected type will do.
    Expected,
}

/// A table's columns that statements are not written for, by their names.
pub(super) type Table = HashMap<String, Column>;

/// Tables that have such columns, by their names.
pub(super) type Tables = HashMap<String, Table>;

/// The statement that does for these tables what this one does for the expected ones.
pub(super) fn rewrite(text: &str, tables: &Tables) -> String {
    let mut out = String::with_capacity(2 * text.len());
    level(&tree::parse(text), tables, None, true, &mut out);
    out
}

/// Keywords that begin a clause, and end the one before.
const CLAUSES: [&str; 14] = [
    "SELECT",
    "SET",
    "RETURNING",
    "FROM",
    "WHERE",
    "ORDER",
    "GROUP",
    "LIMIT",
    "OFFSET",
    "FOR",
    "ON",
    "UNION",
    "EXCEPT",
    "INTERSECT",
];

/// `IS DISTINCT FROM` is no clause.
fn is_boundary(word: &str, before: &[Node<'_>]) -> bool {
    CLAUSES.contains(&word) && !(word == "FROM" && matches!(last(before), Some(Node::Word("DISTINCT"))))
}

// ── Writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/// What is between one pair of parentheses, or the whole statement.
fn level(nodes: &[Node<'_>], tables: &Tables, outer: Option<&Scope<'_>>, outermost: bool, out: &mut String) {
    let sets = |node: &Node<'_>| matches!(node, Node::Word("UNION" | "EXCEPT" | "INTERSECT"));
    let mut rest = nodes;
    while !rest.is_empty() {
        // Each part of a union has names of its own.
        let end = rest.iter().skip(1).position(sets).map_or(rest.len(), |at| at + 1);
        let (part, after) = rest.split_at(end);
        let solid: Vec<&Node<'_>> = part.iter().filter(|node| !matches!(node, Node::Space(_))).collect();
        let scope = Scope::of(&solid, tables, outer);
        let result = match () {
            () if !outermost => Result::None,
            () if part.len() == nodes.len() => Result::Whole,
            () => Result::Part,
        };
        Part { scope: &scope, tables, result, out, at: At::Elsewhere, into: None, item: Item::default() }.write(part);
        rest = after;
    }
}

/// What a list that is selected is of the statement's result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Result {
    Whole,
    /// A part of a union.
    Part,
    None,
}

/// Where in a part the writer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// In a list of what is selected or returned; what is selected for an insertion is written into columns.
    List {
        inserted: bool,
    },
    /// Among assignments.
    Set,
    /// Among what orders the result.
    Order,
    Elsewhere,
}

/// A part as it is written.
struct Part<'p, 'o> {
    scope: &'p Scope<'p>,
    tables: &'p Tables,
    result: Result,
    out: &'o mut String,
    at: At,
    /// The columns of an insertion whose values have not come yet.
    into: Option<Vec<&'p str>>,
    item: Item<'p>,
}

/// An item of a list, or an assignment, under way.
#[derive(Default)]
struct Item<'p> {
    number: usize,
    /// The column that takes it, when that is one of another type.
    column: Option<&'p Column>,
    /// Where it starts in what has been written; none while nothing of it has.
    start: Option<usize>,
    /// What follows is the value.
    open: bool,
}

impl<'p> Part<'p, '_> {
    fn write(&mut self, nodes: &'p [Node<'p>]) {
        let mut at = 0;
        while at < nodes.len() {
            at += self.node(nodes, at);
        }
        self.close();
    }

    /// Writes a node, or several that belong together; how many.
    fn node(&mut self, nodes: &'p [Node<'p>], at: usize) -> usize {
        let (node, before) = (&nodes[at], &nodes[..at]);
        match node {
            Node::Word(word) if is_boundary(word, before) => {
                self.close();
                self.out.push_str(word);
                self.enter(word);
                return 1;
            }
            Node::Comma if matches!(self.at, At::List { .. } | At::Set) => {
                let next = self.item.number + 1;
                self.close();
                self.out.push(',');
                self.begin(next);
                return 1;
            }
            Node::Name(name) if self.at == At::Set && !self.item.open => {
                self.item.column = self.scope.target.and_then(|table| table.get(*name));
            }
            Node::Other("=") if self.at == At::Set && !self.item.open => {
                self.out.push('=');
                self.item.open = true;
                return 1;
            }
            _ => {}
        }
        if self.item.open && self.item.start.is_none() && !matches!(node, Node::Space(_)) {
            self.item.start = Some(self.out.len());
        }
        match (node, nodes.get(at + 1), nodes.get(at + 2)) {
            (Node::Name(table), Some(Node::Dot), Some(Node::Name(column))) => {
                let after = &nodes[at + 3..];
                if let Some(more) = self.key(table, column, before, after) {
                    return 3 + more;
                }
                self.column(table, column, &Place::of(before, after));
                return 3;
            }
            (Node::Group(inner), ..) => self.group(inner, before),
            _ => tree::write(std::slice::from_ref(node), self.out),
        }
        1
    }

    /// What follows this keyword.
    fn enter(&mut self, word: &str) {
        self.at = match word {
            "SELECT" => At::List { inserted: self.into.is_some() },
            "RETURNING" => At::List { inserted: false },
            "SET" => At::Set,
            "ORDER" => At::Order,
            _ => At::Elsewhere,
        };
        self.begin(0);
    }

    /// Begins an item.
    fn begin(&mut self, number: usize) {
        let column = match (self.at, &self.into) {
            (At::List { inserted: true }, Some(columns)) => {
                columns.get(number).and_then(|name| self.scope.target?.get(*name))
            }
            _ => None,
        };
        let open = matches!(self.at, At::List { .. });
        self.item = Item { number, column, start: None, open };
    }

    /// Ends an item: a value for a column of another type is turned into that type.
    fn close(&mut self) {
        if let Item { column: Some(column), start: Some(start), .. } = std::mem::take(&mut self.item) {
            let item = self.out.split_off(start);
            let value = item.trim_end();
            let Column { kind, family, name: (table, name), .. } = column;
            self.out.push_str(&cast::write(value, table, name, *kind, *family));
            self.out.push_str(&item[value.len()..]);
        }
    }

    fn column(&mut self, table: &str, name: &str, place: &Place) {
        let raw = format!("{table}.{name}");
        let Some(column) = self.scope.column(table, name).filter(|one| !(one.presence && place.tested_for_null)) else {
            self.out.push_str(&raw);
            return;
        };
        let listed = place.alone && matches!(self.at, At::List { .. });
        let returned = listed && self.at == (At::List { inserted: false });
        let read = match (self.result, column.together) {
            _ if listed && column.carried => raw,
            (Result::Whole, _) if returned && column.decoded => raw,
            (Result::Part, Together::Same) if returned && column.decoded => raw,
            (Result::Part, Together::Text) if returned => cast::show(&raw),
            // What type it has is asked of the column itself.
            _ if column.kind == Kind::Bytes && !listed => raw,
            _ => cast::read(&raw, column.kind, column.family),
        };
        self.out.push_str(&read);
        if returned && !place.named && !read.starts_with(table) {
            self.out.push_str(" AS ");
            self.out.push_str(name);
        }
    }

    /// Writes a comparison of a key with a value, with values or with the next key, by what the key is spelled like, so that it is found
    /// through its index; how many pieces that takes after the key.
    fn key(&mut self, table: &str, name: &str, before: &[Node<'_>], after: &'p [Node<'p>]) -> Option<usize> {
        let column =
            self.scope.column(table, name).filter(|column| column.key && !column.family.serves(column.kind))?;
        let solid: Vec<(usize, &Node<'_>)> =
            after.iter().enumerate().filter(|(_, node)| !matches!(node, Node::Space(_))).take(4).collect();
        let node = |at: usize| solid.get(at).map(|(_, node)| *node);
        let spelled = |value: &str| {
            let (table, name) = &column.name;
            cast::write(value, table, name, column.kind, column.family)
        };
        let Some(Node::Other(operator @ ("=" | "<" | ">"))) = node(0) else {
            let ordered = self.at == At::Order && matches!(last(before), Some(Node::Word("BY") | Node::Comma));
            return ordered.then(|| {
                self.out.push_str(&format!("{table}.{name}"));
                0
            });
        };
        let (value, end) = match (node(1)?, node(2), node(3)) {
            (Node::Other(place), ..) if place.starts_with('$') => (spelled(place), 1),
            (Node::Name(other), Some(Node::Dot), Some(Node::Name(of))) => {
                let raw = format!("{other}.{of}");
                let read = self.scope.column(other, of).map(|column| cast::read(&raw, column.kind, column.family));
                (spelled(&read.unwrap_or(raw)), 3)
            }
            (Node::Word("ANY"), Some(Node::Group(values)), _) => {
                self.out.push_str(&format!("{table}.{name} IN (SELECT {} FROM unnest(", spelled("one.key")));
                tree::write(values, self.out);
                self.out.push_str(") AS one(key))");
                return solid.get(2).map(|(at, _)| at + 1);
            }
            _ => return None,
        };
        self.out.push_str(&format!("{table}.{name} {operator} {value}"));
        solid.get(end).map(|(at, _)| at + 1)
    }

    fn group(&mut self, inner: &'p [Node<'p>], before: &'p [Node<'p>]) {
        self.out.push('(');
        match self.at {
            At::Elsewhere if self.into.is_none() && is_insertion(before) => {
                self.into = Some(names(inner));
                tree::write(inner, self.out);
            }
            At::Elsewhere if self.into.is_some() && matches!(last(before), Some(Node::Word("VALUES"))) => {
                let outer = std::mem::take(&mut self.item);
                self.at = At::List { inserted: true };
                self.begin(0);
                self.write(inner);
                (self.at, self.item) = (At::Elsewhere, outer);
            }
            _ => level(inner, self.tables, Some(self.scope), false, self.out),
        }
        self.out.push(')');
    }
}

/// How a column stands among its neighbours.
struct Place {
    /// It is an item of a list by itself.
    alone: bool,
    /// A name for it follows.
    named: bool,
    /// What is asked is only whether it is there.
    tested_for_null: bool,
}

impl Place {
    fn of(before: &[Node<'_>], after: &[Node<'_>]) -> Self {
        let next = after.iter().find(|node| !matches!(node, Node::Space(_)));
        let begins = matches!(last(before), Some(Node::Comma | Node::Word("SELECT" | "DISTINCT" | "RETURNING")));
        let ends = match next {
            None | Some(Node::Comma) => true,
            Some(Node::Word(word)) => *word == "AS" || CLAUSES.contains(word),
            _ => false,
        };
        Self {
            alone: begins && ends,
            named: matches!(next, Some(Node::Word("AS"))),
            tested_for_null: matches!(next, Some(Node::Word("IS"))),
        }
    }
}

fn last<'n, 't>(nodes: &'n [Node<'t>]) -> Option<&'n Node<'t>> {
    nodes.iter().rev().find(|node| !matches!(node, Node::Space(_)))
}

/// Whether what comes next are the columns of an insertion: `INSERT INTO tasks AS t`.
fn is_insertion(before: &[Node<'_>]) -> bool {
    let mut back = before.iter().rev().filter(|node| !matches!(node, Node::Space(_)));
    let mut next = back.next();
    if !matches!(next, Some(Node::Name(_))) {
        return false;
    }
    next = back.next();
    if matches!(next, Some(Node::Word("AS"))) {
        back.next();
        next = back.next();
    }
    matches!(next, Some(Node::Word("INTO")))
}

fn names<'t>(nodes: &'t [Node<'t>]) -> Vec<&'t str> {
    let name = |node: &'t Node<'t>| match node {
        Node::Name(name) => Some(*name),
        // Its values have the column's own type already.
        Node::Other(quoted) => Some(*quoted),
        _ => None,
    };
    nodes.iter().filter_map(name).collect()
}

#[cfg(test)]
mod tests;
