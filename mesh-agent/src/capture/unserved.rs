//! Pods that are captured before anybody can serve them.

#![forbid(unsafe_code)]

use super::{Capture, EnrollError, EnrollPod};

impl Capture {
    /// Captures a pod that can't be served yet: its connections are refused until it is
    /// enrolled, as those of any pod are while there is no agent.
    ///
    /// # Errors
    /// As of [`Capture::enroll`] and [`Capture::activate`].
    pub async fn hold(&self, request: EnrollPod) -> Result<(), EnrollError> {
        let uid = request.uid.clone();
        // Listeners that are closed take nothing.
        drop(self.enroll(request).await?);
        if let Err(error) = self.activate(&uid) {
            self.unenroll(&uid).await?;
            return Err(error);
        }
        if let Some(slot) = self.state().pods.get_mut(&uid) {
            slot.held = true;
        }
        Ok(())
    }
}
