//! What the bytes of HTTP/1 heads may be part of, and runs of them.

/// What a byte may be part of.
static CLASSES: [u8; 256] = classes();
/// Spec: RFC 9110 §5.6.2, `tchar`.
pub(super) const TOKEN: u8 = 1;
/// A request target, without a fragment.
pub(super) const TARGET: u8 = 2;

const fn classes() -> [u8; 256] {
    let mut classes = [0; 256];
    let mut byte = b'!';
    while byte <= b'~' {
        let token = byte.is_ascii_alphanumeric()
            || matches!(
                byte,
                b'!' | b'#'
                    | b'$'
                    | b'%'
                    | b'&'
                    | b'\''
                    | b'*'
                    | b'+'
                    | b'-'
                    | b'.'
                    | b'^'
                    | b'_'
                    | b'`'
                    | b'|'
                    | b'~'
            );
        let target = byte != b'#';
        classes[byte as usize] = if token { TOKEN } else { 0 } | if target { TARGET } else { 0 };
        byte += 1;
    }
    classes
}

pub(super) fn is(class: u8, b: u8) -> bool {
    CLASSES[usize::from(b)] & class != 0
}

pub(super) fn is_token(b: u8) -> bool {
    is(TOKEN, b)
}

/// Spec: RFC 9110 §5.5, `field-vchar`, space and tab.
pub(super) fn is_value(b: u8) -> bool {
    (b == b'\t') | ((b >= b' ') & (b != 0x7f))
}

/// How many bytes at the front are of `class`.
pub(super) fn run_of(class: u8, bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| is(class, **b)).count()
}

/// How many bytes at the front are a value's; the compiler makes vector instructions of whole
/// pieces.
pub(super) fn run_of_value(bytes: &[u8]) -> usize {
    let (pieces, _) = bytes.as_chunks::<16>();
    let whole = |piece: &&[u8; 16]| piece.iter().fold(true, |all, b| all & is_value(*b));
    let run = 16 * pieces.iter().take_while(whole).count();
    run + bytes[run..].iter().take_while(|b| is_value(**b)).count()
}

#[cfg(test)]
mod tests {
    use super::{TARGET, TOKEN, is, is_value, run_of, run_of_value};

    #[test]
    fn classes_are_what_the_rfcs_say() {
        for byte in 0..=u8::MAX {
            let token = byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte);
            let target = byte.is_ascii_graphic() && byte != b'#';
            assert_eq!((is(TOKEN, byte), is(TARGET, byte)), (token, target), "{byte:#x}");
            let value = byte == b'\t' || (!byte.is_ascii_control());
            assert_eq!(is_value(byte), value, "{byte:#x}");
        }
    }

    #[test]
    fn a_run_ends_before_what_is_of_another_class_wherever_that_is() {
        for length in 0..70 {
            let mut bytes = vec![b'a'; 70];
            bytes[length] = b'\r';
            assert_eq!(run_of(TOKEN, &bytes), length);
            assert_eq!(run_of_value(&bytes), length);
            assert_eq!(run_of_value(&bytes[..length]), length);
        }
    }
}
