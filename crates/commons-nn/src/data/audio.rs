//! Sound: WAV and FLAC files.

use std::fs::File;
use std::path::Path;

use symphonia::core::codecs::audio::{AudioDecoder, AudioDecoderOptions};
use symphonia::core::errors::Error as Fault;
use symphonia::core::formats::probe::Hint;
use symphonia::core::formats::{FormatOptions, FormatReader, TrackType};
use symphonia::core::io::{MediaSourceStream, MediaSourceStreamOptions};
use symphonia::core::meta::MetadataOptions;

use crate::error::{Error, Result};

/// Most samples of one file, over all channels: some six hours of stereo at 48 kHz.
const MAX_SAMPLES: usize = 1 << 31;

/// Sound as samples.
#[derive(Debug, Clone, PartialEq)]
pub struct Audio {
    /// Samples from -1 to 1, `[frames, channels]`, row-major.
    pub samples: Vec<f32>,
    /// Samples per frame: 1 for mono, 2 for stereo.
    pub channels: usize,
    /// Frames per second, Hz.
    pub rate: u32,
}

impl Audio {
    /// Number of frames.
    pub fn frames(&self) -> usize {
        self.samples.len() / self.channels.max(1)
    }

    /// Length in seconds.
    pub fn seconds(&self) -> f64 {
        self.frames() as f64 / f64::from(self.rate.max(1))
    }

    /// The mean of all channels, `[frames]`.
    pub fn mono(&self) -> Vec<f32> {
        let n = self.channels.max(1);
        self.samples.chunks_exact(n).map(|frame| frame.iter().sum::<f32>() / n as f32).collect()
    }
}

/// Reads a WAV or FLAC file. The checksum of a FLAC file is compared.
///
/// # Errors
/// When the file cannot be read, is of another kind, or is damaged or shorter than it says; names
/// the frame up to which it could be decoded.
pub fn read(path: impl AsRef<Path>) -> Result<Audio> {
    let path = path.as_ref();
    let file = File::open(path).map_err(|e| Error::io(path, "open", e))?;
    let is_file = file.metadata().is_ok_and(|m| m.is_file());
    if !is_file {
        return Err(Error::malformed(path, "is not a regular file"));
    }
    let stream = MediaSourceStream::new(Box::new(file), MediaSourceStreamOptions::default());
    let mut hint = Hint::new();
    if let Some(ending) = path.extension().and_then(|e| e.to_str()) {
        hint.with_extension(ending);
    }
    let unknown = |fault: Fault| {
        Error::malformed(path, format!("is no sound that can be read: {fault}"))
            .remedy("give a WAV or FLAC file; `ffmpeg -i IN OUT.flac` converts others")
    };
    let mut format = symphonia::default::get_probe()
        .probe(&hint, stream, FormatOptions::default(), MetadataOptions::default())
        .map_err(unknown)?;
    let track = format
        .default_track(TrackType::Audio)
        .ok_or_else(|| unknown(Fault::Unsupported("it has no audio track")))?;
    let (id, frames) = (track.id, track.num_frames);
    let parameters = track.codec_params.as_ref().and_then(|p| p.audio());
    let parameters =
        parameters.ok_or_else(|| unknown(Fault::Unsupported("its coding is not known")))?;
    let mut options = AudioDecoderOptions::default();
    options.verify = true;
    let mut decoder = symphonia::default::get_codecs()
        .make_audio_decoder(parameters, &options)
        .map_err(unknown)?;
    let audio = decode(path, &mut *format, &mut *decoder, id)?;
    let found = audio.frames() as u64;
    if frames.is_some_and(|frames| frames != found) {
        let reason = format!("ends after {found} of {} frames", frames.unwrap_or(0));
        return Err(damaged(path, &audio, reason));
    }
    if decoder.finalize().verify_ok == Some(false) {
        return Err(damaged(path, &audio, "its samples do not have the recorded checksum".into()));
    }
    Ok(audio)
}

fn decode(
    path: &Path,
    format: &mut dyn FormatReader,
    decoder: &mut dyn AudioDecoder,
    track: u32,
) -> Result<Audio> {
    let mut audio = Audio { samples: Vec::new(), channels: 0, rate: 0 };
    let mut part: Vec<f32> = Vec::new();
    loop {
        let packet = match format.next_packet() {
            Ok(Some(packet)) => packet,
            Ok(None) => break,
            Err(e) => return Err(damaged(path, &audio, e.to_string())),
        };
        if packet.track_id != track {
            continue;
        }
        let buffer = decoder.decode(&packet).map_err(|e| damaged(path, &audio, e.to_string()))?;
        let (channels, rate) = (buffer.num_planes(), buffer.spec().rate());
        if audio.channels == 0 {
            (audio.channels, audio.rate) = (channels, rate);
        } else if (channels, rate) != (audio.channels, audio.rate) {
            let reason = format!("goes on with {channels} channels at {rate} Hz");
            return Err(damaged(path, &audio, reason));
        }
        buffer.copy_to_vec_interleaved(&mut part);
        if audio.samples.len() + part.len() > MAX_SAMPLES {
            return Err(damaged(path, &audio, "is longer than what is read of one file".into()));
        }
        audio.samples.extend_from_slice(&part);
    }
    if audio.samples.is_empty() {
        return Err(damaged(path, &audio, "holds no samples".into()));
    }
    Ok(audio)
}

fn damaged(path: &Path, audio: &Audio, reason: String) -> Error {
    Error::malformed(path, reason)
        .item(format!("frame {}", audio.frames()))
        .remedy("fetch the file again: it is cut short or damaged")
}
