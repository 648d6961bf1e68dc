//! Values that change how the agent behaves without a new configuration.
//!
//! Spec: `envoy/service/runtime/v3/rtds.proto`, `envoy/type/v3/percent.proto`; Envoy's
//! `configuration/operations/runtime`.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

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

/// A fraction that the runtime may change.
///
/// Spec: `envoy.config.core.v3.RuntimeFractionalPercent`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuntimeFraction {
    /// Empty: it is always the default.
    pub key: String,
    pub default: Fraction,
}

/// A switch that the runtime may change.
///
/// Spec: `envoy.config.core.v3.RuntimeFeatureFlag`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuntimeFlag {
    /// Empty: it is always the default.
    pub key: String,
    pub default: bool,
}

/// A number that the runtime may change.
///
/// Spec: `envoy.config.core.v3.RuntimeDouble`.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RuntimeDouble {
    /// Empty: it is always the default.
    pub key: String,
    pub default: f64,
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

    /// Whether a switch is on.
    pub fn is_on(&self, of: &RuntimeFlag) -> bool {
        self.flag(&of.key, of.default)
    }

    /// The number in force.
    pub fn double(&self, of: &RuntimeDouble) -> f64 {
        match self.value(&of.key) {
            Some((_, RuntimeValue::Number(number))) => *number,
            _ => of.default,
        }
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

    /// A whole number, rounded down; what is no number, or below zero, leaves the
    /// default, as in Envoy.
    pub fn integer(&self, key: &str, default: u64) -> u64 {
        match self.value(key) {
            // Saturates.
            Some((_, RuntimeValue::Number(number))) if *number >= 0.0 => *number as u64,
            _ => default,
        }
    }

    /// Whether a random number falls within a fraction that the runtime may change.
    pub fn includes(&self, fraction: &RuntimeFraction, random: u64) -> bool {
        self.fraction(&fraction.key, fraction.default).includes(random)
    }

    /// A flag; what is no boolean leaves the default, as in Envoy.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        match self.value(key) {
            Some((_, RuntimeValue::Flag(flag))) => *flag,
            _ => default,
        }
    }
}

/// Which layers there are, and where each one's values come from; a later one goes
/// before those above it.
///
/// Spec: `envoy.config.bootstrap.v3.LayeredRuntime`.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct LayeredRuntime {
    pub layers: Vec<LayerSource>,
}

/// One layer: its name, and what it takes its values from.
///
/// Spec: `envoy.config.bootstrap.v3.RuntimeLayer`.
#[derive(Debug, Clone, PartialEq)]
pub struct LayerSource {
    pub name: Arc<str>,
    pub values: LayerValues,
}

#[derive(Debug, Clone, PartialEq)]
pub enum LayerValues {
    Static(Arc<RuntimeLayer>),
    /// The `Runtime` resource of that name; empty for as long as there is none.
    Resource(Arc<str>),
}

impl LayeredRuntime {
    /// Layers that are resources and called after them.
    pub fn of_resources(names: impl IntoIterator<Item = Arc<str>>) -> Self {
        let layers = names
            .into_iter()
            .map(|name| LayerSource { values: LayerValues::Resource(Arc::clone(&name)), name });
        Self { layers: layers.collect() }
    }

    /// The resources it is made of.
    pub fn resource_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.layers.iter().filter_map(|layer| match &layer.values {
            LayerValues::Resource(name) => Some(name),
            LayerValues::Static(_) => None,
        })
    }

    /// Whether one of them is that resource.
    pub fn has_resource(&self, name: &str) -> bool {
        self.resource_names().any(|known| &**known == name)
    }

    /// What is in force where these are the resources there are.
    pub fn with(&self, resources: &HashMap<Arc<str>, Arc<RuntimeLayer>>) -> Runtime {
        let layers = self.layers.iter().map(|layer| {
            let values = match &layer.values {
                LayerValues::Static(values) => Some(values),
                LayerValues::Resource(name) => resources.get(name),
            };
            (Arc::clone(&layer.name), values.map(Arc::clone).unwrap_or_default())
        });
        Runtime { layers: layers.collect() }
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
    fn an_integer_is_rounded_down_and_never_negative() {
        let values = [
            ("half", RuntimeValue::Number(2.5)),
            ("below", RuntimeValue::Number(-1.0)),
            ("huge", RuntimeValue::Number(1e300)),
            ("flag", RuntimeValue::Flag(true)),
        ];
        let runtime = Runtime { layers: vec![("l".into(), layer(&values))] };
        for (key, expected) in [("half", 2), ("below", 7), ("huge", u64::MAX), ("flag", 7), ("", 7)]
        {
            assert_eq!(runtime.integer(key, 7), expected, "{key}");
        }
    }

    #[test]
    fn layers_take_their_values_from_where_they_are_told() {
        let fixed = layer(&[("a", RuntimeValue::Number(1.0)), ("b", RuntimeValue::Number(1.0))]);
        let pushed = layer(&[("b", RuntimeValue::Number(2.0))]);
        let layered = |last: &str| LayeredRuntime {
            layers: vec![
                LayerSource {
                    name: "fixed".into(),
                    values: LayerValues::Static(Arc::clone(&fixed)),
                },
                LayerSource { name: "top".into(), values: LayerValues::Resource(last.into()) },
            ],
        };
        let resources = HashMap::from([("pushed".into(), pushed)]);
        let runtime = layered("pushed").with(&resources);
        assert_eq!((runtime.integer("a", 0), runtime.integer("b", 0)), (1, 2));
        assert_eq!(runtime.value("b").map(|(layer, _)| &**layer), Some("top"));
        let runtime = layered("absent").with(&resources);
        assert_eq!((runtime.integer("a", 0), runtime.integer("b", 0)), (1, 1));
    }

    #[test]
    fn a_fraction_is_of_the_random_number() {
        let half = Fraction { numerator: 5_000, denominator: 10_000 };
        assert!(half.includes(4_999) && !half.includes(5_000) && half.includes(10_000));
        assert!(Fraction::percent(100).includes(u64::MAX) && !Fraction::percent(0).includes(0));
    }
}
