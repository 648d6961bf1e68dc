//! HTTP/2 on either side or both.
