use candle_core::{Device, Tensor, Var};
use commons_ops::{ConvOptions, conv2d};
fn main() { rayon::ThreadPoolBuilder::new().num_threads(1).use_current_thread().build_global().unwrap();
    for (n, c) in [(64usize, 16usize), (64, 32), (64, 64)] {
        let x = Var::from_tensor(&Tensor::randn(0f32, 1., (n, c, 32, 32), &Device::Cpu).unwrap()).unwrap();
        let w = Var::from_tensor(&Tensor::randn(0f32, 1., (c, c, 3, 3), &Device::Cpu).unwrap()).unwrap();
        let flop = 2. * (n * 1024 * c * c * 9) as f64;
        let o = ConvOptions::padded(1);
        let xd = x.detach();
        let wd = w.detach();
        let time = |f: &dyn Fn()| { let mut best = f64::MAX; for _ in 0..12 { let t = cpu(); f(); best = best.min(cpu() - t); } best };
        let fwd = time(&|| { conv2d(&xd, &wd, None, &o).unwrap(); });
        let y = conv2d(&x, &wd, None, &o).unwrap();
        let dx = time(&|| { y.backward().unwrap(); });
        let y = conv2d(&xd, &w, None, &o).unwrap();
        let dw = time(&|| { y.backward().unwrap(); });
        println!("{n} {c}: fwd {:.2} ms {:.0} GF; dx {:.2} ms {:.0}; dw {:.2} ms {:.0}", fwd * 1e3, flop / fwd / 1e9, dx * 1e3, flop / dx / 1e9, dw * 1e3, flop / dw / 1e9);
    }
}

fn cpu() -> f64 {
    let s = std::fs::read_to_string("/proc/self/schedstat").unwrap();
    s.split(' ').next().unwrap().parse::<f64>().unwrap() * 1e-9
}
