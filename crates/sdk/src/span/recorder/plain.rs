//! Spans of scopes as plain data: between [`crate::span::Scope`] and the table of its thread.

use std::borrow::Cow;
use std::sync::Arc;

use warptrace_model::Value;

use super::Recorder;
use crate::span::attributes::check;
use crate::span::current::Contexts;
use crate::span::exporter::is_exporting;
use crate::span::scopes::{Ended, Scopes};
use crate::span::{End, Error, Event, Span, id};

impl Recorder {
    #[inline]
    fn scopes(&self) -> Option<&Arc<Scopes>> {
        match &self.0.contexts {
            Contexts::Threads(scopes) => Some(scopes),
            Contexts::Own(_) => None,
        }
    }

    /// Begins a span for a scope; its key, or the name back when it cannot be a plain one.
    #[inline]
    pub(in crate::span) fn begin(
        &self,
        mut name: Cow<'static, str>,
    ) -> Result<u64, Cow<'static, str>> {
        let scopes = match &self.0.contexts {
            Contexts::Threads(scopes) if self.0.plain && !self.is_closed() && !is_exporting() => {
                scopes
            }
            _ => return Err(name),
        };
        let at = self.now();
        let id = id::next(at.unix_nanos());
        let wanted = !self.0.outlets.is_empty() && self.0.filter.passes(&name);
        scopes.begin(id, &mut name, at, wanted).ok_or(name)
    }

    /// Ends it.
    #[inline]
    pub(in crate::span) fn end(&self, key: u64) {
        let Some(scopes) = self.scopes() else {
            return;
        };
        let at = self.now();
        match scopes.end(key, at, self.is_on(), &|span| self.0.add_open(span)) {
            Ended::Done => {}
            Ended::Shared(span) => {
                let at = Some(at);
                let _ = self.stop(
                    &span,
                    End {
                        at,
                        ..End::default()
                    },
                );
            }
            Ended::Unknown => {
                let _ = self.failed("stop", Error::SpanNotActive);
            }
        }
    }

    /// It is over, and whoever has its span stops that.
    pub(in crate::span) fn forget(&self, key: u64) {
        if let Some(scopes) = self.scopes() {
            let opened = |span: &Span| self.0.add_open(span);
            drop(scopes.end(key, self.now(), false, &opened));
        }
    }

    pub(in crate::span) fn share(&self, key: u64) -> Option<Span> {
        self.scopes()?.share(key, &|span| self.0.add_open(span))
    }

    pub(in crate::span) fn set(&self, key: u64, name: Cow<'static, str>, value: Value) {
        let mut value = value;
        if let Some(scopes) = self.scopes()
            && check(&name, &mut value).is_ok()
            && let Some((span, name, value)) = scopes.set(key, name, value)
        {
            let _ = span.set(&name, value);
        }
    }

    pub(in crate::span) fn say(&self, key: u64, event: Event) {
        if let Some(scopes) = self.scopes()
            && let Some((span, event)) = scopes.event(key, event)
        {
            let _ = self.event(&span, event);
        }
    }
}
