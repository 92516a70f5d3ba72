//! `fit` on published and on own losses.

use crate::Place;

#[test]
fn the_published_fits_come_out() {
    let place = Place::new();
    for (name, k) in [("stack", 0.3935), ("pile", 0.3344)] {
        let json = place.json(&format!("fit parscale {name}"));
        assert!((json["fit"]["law"]["k"].as_f64().unwrap() - k).abs() < 0.005, "{json}");
        assert_eq!(json["is_law"], true);
    }
    let out = place.ok("fit parscale stack --predict 1e9x4 --plot law.svg").out;
    assert!(out.contains("4 streams are worth") && out.contains("loss 1.08"), "{out}");
    assert!(std::fs::read_to_string(place.path("law.svg")).unwrap().contains("<svg"));
}

#[test]
fn own_losses_are_read_and_what_is_wrong_is_said() {
    let place = Place::new();
    let law = |n: f64, p: f64| 1. + (1e7 / (n * (0.5 * p.ln() + 1.))).powf(0.3);
    let row = |n: f64, p: f64| format!("{n},{p},{}\n", law(n, p));
    let csv = |sizes: &[f64], streams: &[f64]| -> String {
        let rows = sizes.iter().flat_map(|&n| streams.iter().map(move |&p| row(n, p)));
        format!("parameters,streams,loss\n{}", rows.collect::<String>())
    };
    let write = |text: String| std::fs::write(place.path("l.csv"), text).unwrap();
    write(csv(&[1e7, 1e8, 1e9], &[1., 2., 4.]));
    let json = place.json("fit parscale l.csv");
    assert!((json["fit"]["law"]["k"].as_f64().unwrap() - 0.5).abs() < 0.01, "{json}");
    write(csv(&[1e7, 1e8, 1e9], &[1., 4.]));
    assert_eq!(place.json("fit parscale l.csv")["is_law"], false);
    write(csv(&[1e7, 1e8], &[1., 4.]));
    place.refused("fit parscale l.csv", &["at least 5"]);
    write("parameters,loss\n1e7,2\n".into());
    place.refused("fit parscale l.csv", &["streams"]);
    place.refused("fit parscale nothing.csv", &["parameters,streams,loss", "stack"]);
}
