//! The router: ticks that go to other topics, by their symbol and a field. The first rule that applies decides.

use crate::pipeline::effects::Effects;
use crate::pipeline::facts::{rule_applies, take_rules};
use crate::pipeline::glob::Glob;
use crate::pipeline::headers::put_packed;
use crate::pipeline::stage::{Passing, RouterSpec};
use crate::pipeline::symbols::{SymbolId, Symbols};

const UNKNOWN: u32 = u32::MAX;

/// What is left to ask of a tick once its symbol is known.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Way {
    /// The rule on a field, by its place among the facts; `None`: it applies.
    rule: Option<usize>,
    to: Option<usize>,
}

#[derive(Debug)]
pub struct Router {
    /// Pattern and way of each route.
    routes: Vec<(Option<Glob>, Way)>,
    rules: usize,
    default: Option<usize>,
    /// For the symbols that the same patterns match, the ways that are open to them, up to one that needs no field.
    plans: Vec<Vec<Way>>,
    /// The plan of each symbol.
    of_symbol: Vec<u32>,
}

impl Router {
    /// `topic` gives a topic's number.
    pub fn new(spec: &RouterSpec, mut topic: impl FnMut(&str) -> usize) -> Self {
        let mut rules = 0;
        let routes = spec
            .routes
            .iter()
            .map(|route| {
                let rule = route.field.is_some().then_some(rules);
                rules += usize::from(route.field.is_some());
                let to = route.to.as_deref().map(&mut topic);
                (route.symbol.as_deref().map(Glob::new), Way { rule, to })
            })
            .collect();
        let default = spec.default.as_deref().map(topic);
        Self { routes, rules, default, plans: Vec::new(), of_symbol: Vec::new() }
    }

    /// Whether the tick goes on.
    #[inline]
    pub fn take(
        &mut self,
        id: SymbolId,
        tick: &Passing,
        facts: &mut &[u8],
        symbols: &Symbols,
        out: &mut Effects,
    ) -> bool {
        let bits = take_rules(facts, self.rules);
        let plan = match self.of_symbol.get(id.index()) {
            Some(plan) if *plan != UNKNOWN => *plan,
            _ => self.plan(id, symbols),
        };
        let way = self.plans[plan as usize].iter().find(|way| way.rule.is_none_or(|rule| rule_applies(bits, rule)));
        let Some(topic) = way.map_or(self.default, |way| way.to) else {
            return true;
        };
        let text = &mut out.routed.text;
        text.extend_from_slice(tick.symbol.as_bytes());
        let key_end = text.len();
        text.extend_from_slice(tick.original.unwrap_or(tick.value));
        let value_end = text.len();
        put_packed(text, tick.headers);
        out.routed.cuts.push((topic, [key_end, value_end, text.len()]));
        false
    }

    #[cold]
    fn plan(&mut self, id: SymbolId, symbols: &Symbols) -> u32 {
        let name = symbols.name(id);
        let mut ways = Vec::new();
        for (pattern, way) in &self.routes {
            if pattern.as_ref().is_none_or(|pattern| pattern.matches(name)) {
                ways.push(*way);
                if way.rule.is_none() {
                    break;
                }
            }
        }
        let plan = self.plans.iter().position(|known| *known == ways).unwrap_or_else(|| {
            self.plans.push(ways);
            self.plans.len() - 1
        });
        if self.of_symbol.len() <= id.index() {
            self.of_symbol.resize(id.index() + 1, UNKNOWN);
        }
        self.of_symbol[id.index()] = plan as u32;
        plan as u32
    }

    /// The number will be another symbol's.
    pub fn give_up(&mut self, id: SymbolId) {
        if let Some(plan) = self.of_symbol.get_mut(id.index()) {
            *plan = UNKNOWN;
        }
    }
}
