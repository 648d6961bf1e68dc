//! Values that change how the agent behaves without a new configuration.
//!
//! Spec: `envoy/service/runtime/v3/rtds.proto`, `envoy/type/v3/percent.proto`; Envoy's
//! `configuration/operations/runtime`.

use std::{collections::BTreeMap, sync::Arc};

use serde::Serialize;

/// How deep a layer's tree may be.
pub const RUNTIME_DEPTH_MAX: usize = 100;

/// One leaf of a layer.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum RuntimeValue {
    Flag(bool),
    Number(f64),
    Text(String),
    Fraction(Fraction),
}

/// Spec: `envoy.type.v3.FractionalPercent`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Fraction {
    pub numerator: u32,
    /// 100, 10 000 or 1 000 000.
    pub denominator: u32,
}

impl Fraction {
    /// A whole percentage.
    pub const fn percent(numerator: u32) -> Self {
        Self { numerator, denominator: 100 }
    }

    /// Whether a random number falls within.
    pub fn includes(self, random: u64) -> bool {
        random % u64::from(self.denominator.max(1)) < u64::from(self.numerator)
    }
}

/// What one source says, keys flattened: `routing.traffic_shift.a`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct RuntimeLayer {
    pub values: BTreeMap<String, RuntimeValue>,
}

/// Layers, of which a later one goes before those above it.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(transparent)]
pub struct Runtime {
    pub layers: Vec<(Arc<str>, Arc<RuntimeLayer>)>,
}

impl Runtime {
    /// The value in force, and the layer it is from.
    pub fn value(&self, key: &str) -> Option<(&Arc<str>, &RuntimeValue)> {
        let newest_first = self.layers.iter().rev();
        newest_first.filter_map(|(name, layer)| Some((name, layer.values.get(key)?))).next()
    }

    /// A fraction; a plain number counts percents, as in Envoy.
    pub fn fraction(&self, key: &str, default: Fraction) -> Fraction {
        match self.value(key) {
            Some((_, RuntimeValue::Fraction(fraction))) => *fraction,
            Some((_, RuntimeValue::Number(percent))) if *percent >= 0.0 => {
                // Saturates; nothing beyond 100 % makes a difference.
                Fraction::percent(*percent as u32)
            }
            _ => default,
        }
    }

    /// A flag; what is no boolean leaves the default, as in Envoy.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        match self.value(key) {
            Some((_, RuntimeValue::Flag(flag))) => *flag,
            _ => default,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(values: &[(&str, RuntimeValue)]) -> Arc<RuntimeLayer> {
        let values = values.iter().map(|(key, value)| ((*key).to_owned(), value.clone()));
        Arc::new(RuntimeLayer { values: values.collect() })
    }

    #[test]
    fn later_layers_go_first_and_wrong_types_leave_the_default() {
        let base =
            layer(&[("a", RuntimeValue::Number(10.0)), ("b", RuntimeValue::Text("x".into()))]);
        let over = layer(&[("a", RuntimeValue::Number(70.0)), ("c", RuntimeValue::Flag(true))]);
        let runtime = Runtime { layers: vec![("base".into(), base), ("over".into(), over)] };
        assert_eq!(runtime.value("a").map(|(layer, _)| &**layer), Some("over"));
        assert_eq!(runtime.fraction("a", Fraction::percent(0)), Fraction::percent(70));
        assert_eq!(runtime.fraction("b", Fraction::percent(3)), Fraction::percent(3));
        assert!(runtime.flag("c", false));
        assert!(!runtime.flag("a", false));
    }

    #[test]
    fn a_fraction_is_of_the_random_number() {
        let half = Fraction { numerator: 5_000, denominator: 10_000 };
        assert!(half.includes(4_999) && !half.includes(5_000) && half.includes(10_000));
        assert!(Fraction::percent(100).includes(u64::MAX) && !Fraction::percent(0).includes(0));
    }
}
