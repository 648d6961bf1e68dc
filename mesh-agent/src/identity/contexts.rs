//! What settings, secrets and files make for TLS, kept for as long as it is wanted and
//! made anew when any of them change. Where a new version of a file is of no use (half
//! written, say), the last good one stays.

use std::{fmt, hash::Hash, path::PathBuf, sync::Arc, time::Duration};

use arc_swap::ArcSwap;
use rpds::HashTrieMapSync;
use tokio_util::sync::CancellationToken;

use super::material::Stamp;

/// How often files are looked at.
pub(super) const LOOK_AGAIN: Duration = Duration::from_millis(500);

/// What contexts are made of: settings, and the secrets they take.
pub trait Recipe: Clone + Send + Sync + 'static {
    /// Whose context it is: each has one at a time.
    type Place: Clone + Eq + Hash + Send + Sync;
    type Context: Send + Sync;
    type Error: fmt::Display;

    fn place(&self) -> Self::Place;

    /// Whether nothing has changed, files apart.
    fn same(&self, other: &Self) -> bool;

    /// The files that are read.
    fn files(&self) -> Vec<PathBuf>;
}

/// Makes contexts. Blocks: it reads files.
pub trait Make<R: Recipe>: Send + Sync + 'static {
    /// # Errors
    /// It can't be made of this.
    fn make(&self, recipe: &R) -> Result<R::Context, R::Error>;
}

/// The contexts of all that is in use.
pub struct Contexts<R: Recipe, M> {
    maker: M,
    /// Every connection reads it; a change copies nothing but its own place.
    kept: ArcSwap<Places<R>>,
}

type Places<R> = HashTrieMapSync<<R as Recipe>::Place, Arc<Kept<R>>>;

struct Kept<R: Recipe> {
    recipe: R,
    context: Arc<R::Context>,
    files: Vec<(PathBuf, Option<Stamp>)>,
}

impl<R: Recipe, M: Make<R>> Contexts<R, M> {
    pub(super) fn of(maker: M) -> Self {
        Self { maker, kept: ArcSwap::default() }
    }

    /// The context of a recipe, made anew where that has changed: the first that asks then
    /// reads the files, everybody else takes what is there.
    ///
    /// # Errors
    /// Nothing can be made of it.
    pub fn context(&self, recipe: &R) -> Result<Arc<R::Context>, R::Error> {
        let place = recipe.place();
        if let Some(kept) = self.kept.load().get(&place)
            && kept.recipe.same(recipe)
        {
            return Ok(Arc::clone(&kept.context));
        }
        // The stamps come first: what changes while it is read is read again.
        let files = Stamp::all(recipe.files());
        let context = Arc::new(self.maker.make(recipe)?);
        let made = Arc::new(Kept { recipe: recipe.clone(), context, files });
        // Who came first has made what all share.
        let before = self.change(|kept| match kept.get(&place) {
            Some(kept) if kept.recipe.same(recipe) => None,
            _ => Some(kept.insert(place.clone(), Arc::clone(&made))),
        });
        let first = before.get(&place).filter(|kept| kept.recipe.same(recipe));
        Ok(Arc::clone(&first.unwrap_or(&made).context))
    }

    /// Reads files anew, now and then. Not on any connection's time.
    pub async fn follow_files(self: Arc<Self>, stop: CancellationToken) {
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(LOOK_AGAIN) => {}
            }
            if self.kept.load().values().any(|kept| !kept.files.is_empty()) {
                let this = Arc::clone(&self);
                if let Err(error) = tokio::task::spawn_blocking(move || this.look()).await {
                    tracing::error!(%error, "the certificates' files were not looked at");
                }
            }
        }
    }

    /// Makes contexts anew whose files have changed. Blocks.
    pub(super) fn look(&self) {
        for (place, old) in self.kept.load_full().iter() {
            if old.files.iter().all(|(path, stamp)| Stamp::of(path) == *stamp) {
                continue;
            }
            let recipe = old.recipe.clone();
            let files = Stamp::all(recipe.files());
            let context = match self.maker.make(&recipe) {
                Ok(context) => Arc::new(context),
                Err(error) => {
                    tracing::error!(%error, "the last good certificates stay in use");
                    Arc::clone(&old.context)
                }
            };
            let new = Arc::new(Kept { recipe, context, files });
            self.change(|kept| {
                // Other settings or secrets may have come meanwhile.
                let current = kept.get(place).filter(|kept| Arc::ptr_eq(kept, old));
                current.map(|_| kept.insert(place.clone(), Arc::clone(&new)))
            });
        }
    }

    /// Forgets what `keep` does not want.
    pub fn retain(&self, keep: impl Fn(&R) -> bool) {
        self.change(|contexts| {
            let unwanted = contexts.iter().filter(|(_, kept)| !keep(&kept.recipe));
            let unwanted: Vec<_> = unwanted.map(|(place, _)| place.clone()).collect();
            let mut left = Places::<R>::clone(contexts);
            unwanted.iter().for_each(|place| _ = left.remove_mut(place));
            (!unwanted.is_empty()).then_some(left)
        });
    }

    /// Each context, as connections would get it now.
    pub(super) fn all(&self) -> Vec<Arc<R::Context>> {
        self.kept.load().values().map(|kept| Arc::clone(&kept.context)).collect()
    }

    /// Changes what is kept, unless there is nothing to change; what was kept before.
    fn change(&self, change: impl Fn(&Places<R>) -> Option<Places<R>>) -> Arc<Places<R>> {
        self.kept.rcu(|kept| match change(kept) {
            Some(changed) => Arc::new(changed),
            None => Arc::clone(kept),
        })
    }
}

impl<R: Recipe, M> fmt::Debug for Contexts<R, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Contexts").finish_non_exhaustive()
    }
}

/// Whether both are the very same, or nothing.
pub(super) fn is<T>(a: &Option<Arc<T>>, b: &Option<Arc<T>>) -> bool {
    a.as_ref().map(Arc::as_ptr) == b.as_ref().map(Arc::as_ptr)
}
