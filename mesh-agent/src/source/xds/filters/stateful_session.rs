//! Spec: `envoy.extensions.filters.http.stateful_session.v3`,
//! `envoy.extensions.http.stateful_session.{cookie,header}.v3`.

use std::sync::Arc;

use super::super::{common, cookies, header_mutation, reject::Decoder};
use crate::model::{
    cookie::OwnCookie,
    filter::{HttpFilter, RouteFilterConfig, SessionPerRoute, SessionState, StatefulSession},
};
use envoy_types::pb::{
    envoy::{
        config::core::v3::TypedExtensionConfig,
        extensions::{
            filters::http::stateful_session::v3::{
                StatefulSession as PbStatefulSession, StatefulSessionPerRoute,
                stateful_session_per_route::Override,
            },
            http::stateful_session::{
                cookie::v3::CookieBasedSessionState, header::v3::HeaderBasedSessionState,
            },
        },
        r#type::http::v3::{Cookie, CookieAttribute},
    },
    google::protobuf::Any,
};

pub(super) fn filter(d: &mut Decoder, any: &Any) -> Option<HttpFilter> {
    let value = common::unpack(d, any)?;
    session(d, value).map(HttpFilter::StatefulSession)
}

pub(super) fn route(d: &mut Decoder, any: &Any) -> Option<RouteFilterConfig> {
    let StatefulSessionPerRoute { r#override } = common::unpack(d, any)?;
    let said = match r#override {
        Some(Override::Disabled(true)) => SessionPerRoute::Disabled,
        Some(Override::Disabled(false)) => {
            return d.field("disabled", |d| d.refused("can only be true"));
        }
        Some(Override::StatefulSession(value)) => {
            SessionPerRoute::Own(d.field("stateful_session", |d| session(d, value))?)
        }
        None => return d.refused("has neither disabled nor stateful_session"),
    };
    Some(RouteFilterConfig::StatefulSession(Arc::new(said)))
}

fn session(d: &mut Decoder, value: PbStatefulSession) -> Option<Arc<StatefulSession>> {
    let PbStatefulSession {
        session_state,
        strict,
        // Statistics.
        stat_prefix: _,
        status_on_strict_destination_not_found,
    } = value;
    let status = match u16::try_from(status_on_strict_destination_not_found) {
        Ok(0) => Some(503),
        Ok(status @ 200..600) => Some(status),
        _ => d.field("status_on_strict_destination_not_found", |d| {
            let status = status_on_strict_destination_not_found;
            d.refused(format!("{status} is not within 200 to 599"))
        }),
    };
    let state = match session_state {
        None => Some(None),
        Some(value) => d.field("session_state", |d| state(d, value)).map(Some),
    };
    Some(Arc::new(StatefulSession { state: state?, strict, status_not_found: status? }))
}

fn state(d: &mut Decoder, value: TypedExtensionConfig) -> Option<SessionState> {
    let TypedExtensionConfig { name, typed_config } = value;
    match typed_config {
        Some(any) if common::is::<CookieBasedSessionState>(&any) => {
            let CookieBasedSessionState { cookie } = common::unpack(d, &any)?;
            d.field("cookie", |d| match cookie {
                Some(value) => self::cookie(d, value).map(SessionState::Cookie),
                None => d.refused("is missing"),
            })
        }
        Some(any) if common::is::<HeaderBasedSessionState>(&any) => {
            let HeaderBasedSessionState { name } = common::unpack(d, &any)?;
            d.field("name", |d| header_mutation::name(d, &name)).map(SessionState::Header)
        }
        other => {
            let type_name = other.as_ref().map(common::type_name).unwrap_or_default();
            common::refuse_extension(d, &name, &type_name);
            None
        }
    }
}

fn cookie(d: &mut Decoder, value: Cookie) -> Option<OwnCookie> {
    let Cookie { name, ttl, path, attributes } = value;
    let attributes = attributes.into_iter().map(|CookieAttribute { name, value }| (name, value));
    cookies::own(d, name, ttl, path, attributes.collect())
}
