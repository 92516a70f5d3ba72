//! `list`, `papers`, `run`.

use crate::Place;

#[test]
fn methods_are_listed_with_recipes() {
    let place = Place::new();
    let json = place.json("list");
    let slugs: Vec<&str> = json.as_array().unwrap().iter().map(|m| m["slug"].as_str().unwrap()).collect();
    assert!(slugs.contains(&"foldgpt") && slugs.contains(&"relaxed-recursive"), "{slugs:?}");
    for method in json.as_array().unwrap() {
        let recipes: Vec<&str> = method["recipes"].as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap()).collect();
        assert!(recipes.contains(&"smoke") && recipes.contains(&"full"), "{method}");
    }
    let shown = place.ok("list").out;
    assert!(slugs.iter().all(|s| shown.contains(s)), "{shown}");
}

#[test]
fn a_card_says_what_is_shared_and_claimed() {
    let place = Place::new();
    let card = place.ok("papers relaxed-recursive").out;
    assert!(card.contains("Relaxed Recursive") && card.contains("shares") && card.contains("claims"), "{card}");
    assert!(!place.json("papers foldgpt")[0]["claims"].as_array().unwrap().is_empty());
    place.refused("papers foldgtp", &["foldgtp", "`foldgpt`"]);
}

#[test]
fn a_wrong_recipe_or_setting_is_refused() {
    let place = Place::new();
    place.refused("run foldgpt --recipe large", &["large", "smoke"]);
    place.refused("run foldgtp", &["foldgtp", "`foldgpt`"]);
    place.refused("run foldgpt --set no_such_thing=1", &["no_such_thing"]);
}
