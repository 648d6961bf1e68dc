//! Routes that send a client elsewhere.
//!
//! Spec: `envoy.config.route.v3.RedirectAction`.

use envoy_types::pb::envoy::config::route::v3::{
    RedirectAction,
    redirect_action::{PathRewriteSpecifier, RedirectResponseCode, SchemeRewriteSpecifier},
};

use super::{
    super::{common, matchers, reject::Decoder},
    clusters::authority,
};
use crate::model::route::{Redirect, RedirectPath};

pub(super) fn redirect(d: &mut Decoder, value: RedirectAction) -> Option<Redirect> {
    let RedirectAction {
        host_redirect,
        port_redirect,
        response_code,
        strip_query,
        scheme_rewrite_specifier,
        path_rewrite_specifier,
    } = value;
    let scheme = match scheme_rewrite_specifier {
        None | Some(SchemeRewriteSpecifier::HttpsRedirect(false)) => Some(None),
        Some(SchemeRewriteSpecifier::HttpsRedirect(true)) => Some(Some("https".to_owned())),
        Some(SchemeRewriteSpecifier::SchemeRedirect(scheme)) => {
            d.field("scheme_redirect", |d| match scheme.parse::<http::uri::Scheme>() {
                Ok(_) => Some(Some(scheme)),
                Err(_) => d.refused(format!("`{scheme}` is not a scheme")),
            })
        }
    };
    let host = match host_redirect.is_empty() {
        true => Some(None),
        false => d.field("host_redirect", |d| authority(d, host_redirect)).map(Some),
    };
    let port = match port_redirect {
        0 => Some(None),
        port => d.field("port_redirect", |d| common::port(d, port)).map(Some),
    };
    let path = match path_rewrite_specifier {
        None => Some(RedirectPath::Same),
        Some(PathRewriteSpecifier::PathRedirect(path)) => {
            d.field("path_redirect", |d| reference(d, path)).map(RedirectPath::Whole)
        }
        Some(PathRewriteSpecifier::PrefixRewrite(prefix)) => {
            d.field("prefix_rewrite", |d| reference(d, prefix)).map(RedirectPath::Prefix)
        }
        Some(PathRewriteSpecifier::RegexRewrite(value)) => {
            d.field("regex_rewrite", |d| matchers::regex_rewrite(d, value)).map(RedirectPath::Regex)
        }
        Some(PathRewriteSpecifier::PathRewrite(_)) => d.not_supported("path_rewrite"),
    };
    let status = match RedirectResponseCode::try_from(response_code) {
        Ok(RedirectResponseCode::MovedPermanently) => Some(301),
        Ok(RedirectResponseCode::Found) => Some(302),
        Ok(RedirectResponseCode::SeeOther) => Some(303),
        Ok(RedirectResponseCode::TemporaryRedirect) => Some(307),
        Ok(RedirectResponseCode::PermanentRedirect) => Some(308),
        Err(_) => d.field("response_code", |d| d.refused(format!("{response_code} is unknown"))),
    };
    Some(Redirect {
        status: status?,
        scheme: scheme?,
        host: host?,
        port: port?,
        path: path?,
        strip_query,
    })
}

/// What may stand in a `location` header, as Envoy has it: any visible text.
fn reference(d: &mut Decoder, text: String) -> Option<String> {
    match text.bytes().all(|b| b.is_ascii_graphic()) {
        true => Some(text),
        false => d.refused(format!("`{text}` is not a path")),
    }
}
