//! What filters make of a body on its way, piece by piece.

use std::{
    fmt,
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue};
use http_body::Frame;

use super::filter::grpc_stats::Counting;
use crate::{
    codec::{
        compression::{CodingError, Decoder, Encoder},
        grpc_web::{FromWeb, ToWeb},
    },
    model::compression::Decompressor,
};

/// One filter's part.
pub(super) enum Stage {
    Compress(Encoder),
    Expand(Box<Expand>),
    FromWeb(FromWeb),
    ToWeb(ToWeb),
    CountGrpc(Counting),
}

impl fmt::Debug for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Compress(_) => "Compress",
            Self::Expand(_) => "Expand",
            Self::FromWeb(_) => "FromWeb",
            Self::ToWeb(_) => "ToWeb",
            Self::CountGrpc(_) => "CountGrpc",
        })
    }
}

/// Expands, and tells in trailers by how much.
pub(super) struct Expand {
    decoder: Decoder,
    names: [HeaderName; 2],
    before: u64,
    after: u64,
}

impl Stage {
    pub(super) fn expand(config: &Decompressor) -> Result<Self, CodingError> {
        let decoder = Decoder::new(config.coding, config.ratio_max)?;
        let names = config.trailers.clone();
        Ok(Self::Expand(Box::new(Expand { decoder, names, before: 0, after: 0 })))
    }
}

/// Stages, the first one next to where the body comes from.
#[derive(Debug, Default)]
pub(super) struct Stages(Vec<Link>);

#[derive(Debug)]
struct Link {
    stage: Stage,
    /// What has come out and was not taken; never empty.
    out: Option<Bytes>,
    /// The end, once it was reached, and the trailers that come with it.
    end: Option<Option<HeaderMap>>,
}

impl Stages {
    /// Comes after those that are there.
    pub(super) fn push(&mut self, stage: Stage) {
        self.0.push(Link { stage, out: None, end: None });
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether everything has come out.
    pub(super) fn is_done(&self) -> bool {
        self.0.last().is_some_and(|last| last.out.is_none() && matches!(last.end, Some(None)))
    }

    /// The next frame of what becomes of `source`'s.
    pub(super) fn poll<E: From<CodingError>>(
        &mut self,
        cx: &mut Context<'_>,
        mut source: impl FnMut(&mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, E>>>,
    ) -> Poll<Option<Result<Frame<Bytes>, E>>> {
        poll(&mut self.0, cx, &mut source)
    }
}

impl Link {
    fn give(&mut self, data: Bytes) -> Result<(), CodingError> {
        if data.is_empty() {
            return Ok(());
        }
        match &mut self.stage {
            Stage::Compress(encoder) => self.out = some(encoder.push(&data)?),
            Stage::Expand(expand) => {
                expand.before += data.len() as u64;
                expand.decoder.push(data);
            }
            Stage::FromWeb(web) => self.out = some(web.push(data)?),
            Stage::ToWeb(web) => self.out = some(web.push(data)),
            Stage::CountGrpc(counting) => {
                counting.moved(&data);
                self.out = Some(data);
            }
        }
        Ok(())
    }

    /// What comes out of what was given.
    fn take(&mut self) -> Result<Option<Bytes>, CodingError> {
        match &mut self.stage {
            Stage::Compress(_) | Stage::FromWeb(_) | Stage::ToWeb(_) | Stage::CountGrpc(_) => {
                Ok(self.out.take())
            }
            Stage::Expand(expand) => {
                let out = expand.decoder.pull()?;
                expand.after += out.as_ref().map_or(0, Bytes::len) as u64;
                Ok(out)
            }
        }
    }

    fn finish(&mut self, mut trailers: Option<HeaderMap>) -> Result<(), CodingError> {
        match &mut self.stage {
            Stage::Compress(encoder) => self.out = some(encoder.finish()?),
            Stage::Expand(expand) => {
                expand.decoder.finish()?;
                let trailers = trailers.get_or_insert_default();
                let told = expand.names.iter().zip([expand.before, expand.after]);
                for (name, bytes) in told {
                    trailers.append(name, HeaderValue::from(bytes));
                }
            }
            Stage::FromWeb(web) => web.finish()?,
            Stage::CountGrpc(counting) => counting.ended(trailers.as_ref()),
            // They have become part of the body.
            Stage::ToWeb(web) => self.out = some(web.finish(trailers.take().as_ref())),
        }
        self.end = Some(trailers);
        Ok(())
    }
}

fn some(data: Bytes) -> Option<Bytes> {
    Some(data).filter(|data| !data.is_empty())
}

type Polled<E> = Poll<Option<Result<Frame<Bytes>, E>>>;

fn poll<E: From<CodingError>>(
    links: &mut [Link],
    cx: &mut Context<'_>,
    source: &mut dyn FnMut(&mut Context<'_>) -> Polled<E>,
) -> Polled<E> {
    let Some((link, before)) = links.split_last_mut() else { return source(cx) };
    loop {
        match link.take() {
            Ok(Some(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
            Ok(None) => {}
            Err(error) => return Poll::Ready(Some(Err(error.into()))),
        }
        if let Some(trailers) = &mut link.end {
            return Poll::Ready(trailers.take().map(|trailers| Ok(Frame::trailers(trailers))));
        }
        let taken = match ready!(poll(before, cx, source)) {
            Some(Err(error)) => return Poll::Ready(Some(Err(error))),
            Some(Ok(frame)) => match frame.into_data() {
                Ok(data) => link.give(data),
                Err(frame) => link.finish(frame.into_trailers().ok()),
            },
            None => link.finish(None),
        };
        if let Err(error) = taken {
            return Poll::Ready(Some(Err(error.into())));
        }
    }
}
