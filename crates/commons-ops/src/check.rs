//! Shape checks shared by the fused and the composed ops, so both refuse the same inputs.

use candle_core::{DType, Result, Tensor, bail};

/// What a linear map sees of its operands.
pub(crate) struct Linear {
    /// Product of the leading dimensions.
    pub rows: usize,
    /// Width of the input.
    pub inputs: usize,
    /// Dimensions of the result.
    pub out_dims: Vec<usize>,
}

/// `x [.., in]`, `w [out, in]`, `bias [out]`. Trailing dimensions of `x` are joined until their
/// product is `in`, so attention output `[b, t, h, d]` feeds a `[out, h·d]` weight as it is.
pub(crate) fn linear(
    op: &'static str,
    x: &Tensor,
    w: &Tensor,
    bias: Option<&Tensor>,
) -> Result<Linear> {
    let &[out, inputs] = w.dims() else {
        bail!("{op}: the weight must be a matrix [out, in], got {:?}", w.dims())
    };
    let dims = x.dims();
    let mut width = 1;
    let mut lead = dims.len();
    while lead > 0 && (width != inputs || lead == dims.len()) && width <= inputs.max(1) {
        lead -= 1;
        width *= dims[lead];
    }
    if width != inputs || dims.is_empty() {
        bail!("{op}: input {dims:?} does not end in the {inputs} columns of weight {:?}", w.dims())
    }
    if let Some(bias) = bias
        && bias.dims() != [out]
    {
        bail!("{op}: bias {:?} does not fit weight {:?}", bias.dims(), w.dims())
    }
    let mut out_dims = dims[..lead].to_vec();
    let rows = out_dims.iter().product();
    out_dims.push(out);
    Ok(Linear { rows, inputs, out_dims })
}

pub(crate) fn lora(op: &'static str, w: &Tensor, a: &Tensor, b: &Tensor) -> Result<()> {
    let fits = matches!(
        (w.dims(), a.dims(), b.dims()),
        (&[out, inputs], &[rank, a_in], &[b_out, b_rank])
            if a_in == inputs && b_out == out && rank == b_rank
    );
    if !fits {
        bail!(
            "{op}: adapters A {:?} [rank, in] and B {:?} [out, rank] do not fit weight {:?} [out, in]",
            a.dims(),
            b.dims(),
            w.dims()
        )
    }
    Ok(())
}

pub(crate) fn same(op: &'static str, a: &Tensor, b: &Tensor) -> Result<()> {
    if a.dims() != b.dims() {
        bail!("{op}: shapes {:?} and {:?} differ", a.dims(), b.dims())
    }
    Ok(())
}

pub(crate) fn embedding(w: &Tensor, ids: &Tensor) -> Result<()> {
    if w.rank() != 2 {
        bail!("embedding: the table must be a matrix [vocab, width], got {:?}", w.dims())
    }
    if ids.dtype() != DType::U32 {
        bail!("embedding: ids {:?} must be u32, got {:?}", ids.dims(), ids.dtype())
    }
    Ok(())
}

/// Checks a normalisation over the last dimension; returns `(rows, width)`.
pub(crate) fn norm(
    op: &'static str,
    x: &Tensor,
    gain: &Tensor,
    bias: Option<&Tensor>,
) -> Result<(usize, usize)> {
    let Some((&width, lead)) = x.dims().split_last() else {
        bail!("{op}: the input has no dimension to normalise")
    };
    if gain.dims() != [width] {
        bail!("{op}: gain {:?} does not fit input {:?}", gain.dims(), x.dims())
    }
    if let Some(bias) = bias
        && bias.dims() != [width]
    {
        bail!("{op}: bias {:?} does not fit input {:?}", bias.dims(), x.dims())
    }
    Ok((lead.iter().product(), width))
}

/// Rows and width of a tensor over its last dimension.
pub(crate) fn last_dim(op: &'static str, x: &Tensor) -> Result<(usize, usize)> {
    match x.dims().split_last() {
        Some((&width, lead)) if width > 0 => Ok((lead.iter().product(), width)),
        _ => bail!("{op}: the last dimension of {:?} is empty", x.dims()),
    }
}

pub(crate) fn matrix(op: &'static str, what: &str, x: &Tensor) -> Result<(usize, usize)> {
    match *x.dims() {
        [n, v] => Ok((n, v)),
        _ => bail!("{op}: {what} must be a matrix, got {:?}", x.dims()),
    }
}

pub(crate) fn rope(x: &Tensor, cos: &Tensor, sin: &Tensor) -> Result<(usize, usize, usize, usize)> {
    let &[b, t, h, d] = x.dims() else {
        bail!("rope: the input must be [batch, seq, heads, head_dim], got {:?}", x.dims())
    };
    if d % 2 != 0 || cos.dims() != [t, d / 2] || sin.dims() != [t, d / 2] {
        bail!(
            "rope: tables cos {:?} and sin {:?} do not fit input {:?}: both must be [seq, head_dim / 2]",
            cos.dims(),
            sin.dims(),
            x.dims()
        )
    }
    Ok((b, t, h, d))
}

/// Checks the operands of a distillation loss; returns `(rows, vocab)`.
pub(crate) fn kl(
    op: &'static str,
    h_student: &Tensor,
    w_student: &Tensor,
    h_teacher: &Tensor,
    w_teacher: &Tensor,
    temperature: f32,
) -> Result<(usize, usize)> {
    let student = linear(op, h_student, w_student, None)?;
    let teacher = linear(op, h_teacher, w_teacher, None)?;
    if student.rows != teacher.rows || w_student.dims()[0] != w_teacher.dims()[0] {
        bail!(
            "{op}: student {:?} x {:?} and teacher {:?} x {:?} differ in rows or vocabulary",
            h_student.dims(),
            w_student.dims(),
            h_teacher.dims(),
            w_teacher.dims()
        )
    }
    if !(temperature > 0.0) {
        bail!("{op}: temperature {temperature} must be positive")
    }
    Ok((student.rows, w_student.dims()[0]))
}
