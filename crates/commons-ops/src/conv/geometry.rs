//! Where every tap of a convolution reads and writes.
//!
//! A convolution relates a *big* side (the input of `conv`, the output of `conv_transpose`) to a
//! *small* side. Both directions are reduced to one form, a sum of shifted copies of a
//! zero-padded panel,
//!
//! `out[p] = Σ_taps weight[tap] · panel[base(tap) + p]`,
//!
//! in which `p` runs over consecutive positions. A stride `s` is removed beforehand by splitting
//! the padded signal into its `s` phases (every `s`-th element), so that all reads are contiguous.

/// One spatial axis of a convolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Axis {
    pub big: usize,
    pub small: usize,
    pub kernel: usize,
    pub stride: usize,
    pub padding: usize,
    pub dilation: usize,
}

/// A tap of the kernel: its index, the phase it reads and the shift inside that phase.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tap {
    pub index: usize,
    pub phase: usize,
    pub base: usize,
}

/// Positions `t` that share one set of taps and write `out[t · step + shift]`.
#[derive(Clone, Debug)]
pub(super) struct Class {
    pub taps: Vec<Tap>,
    pub step: usize,
    pub shift: isize,
}

impl Class {
    /// The positions of `from..to` whose output index lies inside `0..len`, and that index for
    /// the first of them.
    pub fn valid(&self, from: usize, to: usize, len: usize) -> (usize, usize, usize) {
        let step = self.step as isize;
        let first = if self.shift < 0 { (-self.shift + step - 1) / step } else { 0 };
        let last = (len as isize - self.shift + step - 1).max(0) / step;
        let from = from.max(first as usize);
        let to = to.min(last as usize).max(from);
        let index = (from as isize * step + self.shift).max(0) as usize;
        (from, to, index)
    }
}

/// How one axis is read (panel side) and written (output side).
#[derive(Clone, Debug)]
pub(super) struct AxisPlan {
    /// Elements of the tensor that fills the panel.
    pub source: usize,
    /// Elements of the tensor that is written.
    pub target: usize,
    /// Number of phases into which the padded source is split.
    pub phases: usize,
    /// Zeros in front of the first source element.
    pub lead: usize,
    /// Positions computed by every class.
    pub positions: usize,
    pub classes: Vec<Class>,
    /// Largest shift of any tap.
    pub reach: usize,
    /// Distance between consecutive rows (or images) such that reads past the end of one only
    /// meet the leading zeros of the next.
    pub pitch: usize,
}

impl AxisPlan {
    /// big → small: `out[o] = Σ_k w[k] · in[o·stride + k·dilation − padding]`.
    pub fn gather(axis: &Axis) -> Self {
        let taps = (0..axis.kernel)
            .map(|k| {
                let at = k * axis.dilation;
                Tap { index: k, phase: at % axis.stride, base: at / axis.stride }
            })
            .collect();
        Self {
            source: axis.big,
            target: axis.small,
            phases: axis.stride,
            lead: axis.padding,
            positions: axis.small,
            classes: vec![Class { taps, step: 1, shift: 0 }],
            reach: 0,
            pitch: 0,
        }
        .finish()
    }

    /// small → big, the adjoint of [`AxisPlan::gather`]: output index `c − padding` with
    /// `c = q·stride + r` receives `Σ w[k] · in[q − ⌊k·dilation/stride⌋]` over the taps with
    /// `k·dilation ≡ r (mod stride)`. Each residue `r` is a class.
    pub fn scatter(axis: &Axis) -> Self {
        let (s, p) = (axis.stride, axis.padding);
        let first = p / s;
        let last = (p + axis.big.max(1) - 1) / s;
        let offset = |k: usize| k * axis.dilation / s;
        let lead = (0..axis.kernel).map(|k| offset(k).saturating_sub(first)).max().unwrap_or(0);
        let classes = (0..s)
            .map(|r| Class {
                taps: (0..axis.kernel)
                    .filter(|k| k * axis.dilation % s == r)
                    .map(|k| Tap { index: k, phase: 0, base: lead + first - offset(k) })
                    .collect(),
                step: s,
                shift: (first * s + r) as isize - p as isize,
            })
            .collect();
        Self {
            source: axis.small,
            target: axis.big,
            phases: 1,
            lead,
            positions: last - first + 1,
            classes,
            reach: 0,
            pitch: 0,
        }
        .finish()
    }

    fn finish(mut self) -> Self {
        let taps = self.classes.iter().flat_map(|c| &c.taps);
        self.reach = taps.map(|t| t.base).max().unwrap_or(0);
        let extents = (0..self.phases).map(|phase| self.extent(phase));
        let (lowest, highest) =
            extents.fold((usize::MAX, 0), |(lo, hi), e| (lo.min(e.0), hi.max(e.1)));
        // Number of elements any position may read, of which the last `lowest` may be shared.
        let read = self.positions + self.reach;
        self.pitch = self.positions.max(highest).max(read.saturating_sub(lowest)).max(1);
        self
    }

    /// First and one-past-last panel index that holds source data in `phase`.
    pub fn extent(&self, phase: usize) -> (usize, usize) {
        let low = self.lead.saturating_sub(phase).div_ceil(self.phases);
        let end = self.lead + self.source;
        let high = end.saturating_sub(phase).div_ceil(self.phases);
        (low, high.max(low))
    }

    /// The source index held by panel index `at` of `phase`, if any.
    pub fn source_index(&self, phase: usize, at: usize) -> Option<usize> {
        (at * self.phases + phase).checked_sub(self.lead).filter(|&i| i < self.source)
    }
}

/// Rows × columns of a convolution in one direction.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub rows: AxisPlan,
    pub cols: AxisPlan,
}

impl Plan {
    pub fn gather(rows: &Axis, cols: &Axis) -> Self {
        Self { rows: AxisPlan::gather(rows), cols: AxisPlan::gather(cols) }
    }

    pub fn scatter(rows: &Axis, cols: &Axis) -> Self {
        Self { rows: AxisPlan::scatter(rows), cols: AxisPlan::scatter(cols) }
    }

    pub fn source_len(&self) -> usize {
        self.rows.source * self.cols.source
    }

    pub fn target_len(&self) -> usize {
        self.rows.target * self.cols.target
    }

    /// Floats of panel one whole image needs per channel.
    pub fn image_len(&self) -> usize {
        self.rows.phases * self.cols.phases * self.rows.pitch * self.cols.pitch
    }
}
