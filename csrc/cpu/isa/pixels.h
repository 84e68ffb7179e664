// The pixels of a channel mix, a tile at a time, as its loops want them.
#pragma once

#include "cpu/channel_mix.h"

#include "convert.h"

namespace fastflow::FASTFLOW_ISA {

template <class T>
int vectors_of(int64_t count) {
  return static_cast<int>((count + width<T> - 1) / width<T>);
}

// The pixels [pixel, pixel + count) of a row.
struct PixelTile {
  int64_t row, pixel, count;
};

inline char* place(const Pixels& pixels, const Channels& part, const PixelTile& tile) {
  return part.data + (tile.row * part.row_stride + tile.pixel * part.pixel_stride) * bytes_of[pixels.dtype];
}

// A number for each channel, and zeros beyond them.
template <class T>
struct ChannelVector {
  ChannelVector(const void* from, int channels) : given(from != nullptr) {
    for (int n = 0; n < most_channels; ++n) of[n] = given && n < channels ? static_cast<const T*>(from)[n] : 0;
  }

  const bool given;
  alignas(64) T of[most_channels];
};

// A tile with the pixels side by side: where each channel's lie, in the tensors or in a buffer.
template <class T>
class Planes {
 public:
  Planes(const Pixels& pixels, const PixelTile& tile, T* buffer) : count(tile.count), pixels_(pixels), tile_(tile) {
    direct_ = pixels.dtype == native<T> && pixels.part[0].width == 0;
    for (const Channels& part : pixels.part) {
      for (int c = 0, k = part.first; c < part.count; ++c, k += part.step) {
        char* const first = part.data + (tile.row * part.row_stride + c * part.channel_stride) * bytes();
        channel[k] = direct_ ? reinterpret_cast<T*>(first) + tile.pixel : buffer + k * count;
      }
    }
  }

  void read() const {
    over_runs([&](T* to, const char* from, int64_t length, int64_t stride) {
      pack(to, from, pixels_.dtype, {1, length, 0, stride});
    });
  }

  void write() const {
    over_runs([&](const T* from, char* to, int64_t length, int64_t stride) {
      unpack(to, from, pixels_.dtype, {1, length, 0, stride});
    });
  }

  // Asks for the same pixels of the next row: the planes of a tile lie too far apart for the hardware to foresee it.
  template <bool to_write>
  void prefetch(int64_t p) const {
    for (const Channels& part : pixels_.part) {
      for (int c = 0, k = part.first; c < part.count && direct_; ++c, k += part.step) {
        const T* const next = channel[k] + p + part.row_stride;
        __builtin_prefetch(next, to_write, 2);
        __builtin_prefetch(next + 64 / sizeof(T), to_write, 2);
      }
    }
  }

  T* channel[most_channels];
  const int64_t count;

 private:
  int64_t bytes() const { return bytes_of[pixels_.dtype]; }

  // Calls body(in the buffer, in the tensor, length, stride) for pixels with one stride.
  template <class Body>
  void over_runs(Body body) const {
    for (const Channels& part : pixels_.part) {
      for (int c = 0, k = part.first; c < part.count && !direct_; ++c, k += part.step) {
        char* const plane = part.data + (tile_.row * part.row_stride + c * part.channel_stride) * bytes();
        for (int64_t done = 0; done < count;) {
          const int64_t pixel = tile_.pixel + done, column = part.width == 0 ? pixel : pixel % part.width;
          const int64_t line = part.width == 0 ? 0 : pixel / part.width;
          const int64_t length = part.width == 0 ? count : smaller(count - done, part.width - column);
          body(channel[k] + done, plane + (line * part.line_stride + column * part.pixel_stride) * bytes(), length,
               part.pixel_stride);
          done += length;
        }
      }
    }
  }

  const Pixels& pixels_;
  const PixelTile tile_;
  bool direct_;
};

// A tile with the channels of a pixel side by side: in the tensor or, where that is two, or of other storage, or has to
// be centered or padded with zeros to whole vectors, in a buffer.
template <class T>
class Lines {
 public:
  Lines(const Pixels& pixels, const PixelTile& tile, int channels, const ChannelVector<T>& center, bool padded, T* buffer)
      : count(tile.count), pixels_(pixels), tile_(tile), center_(center) {
    const bool whole = channels % width<T> == 0;
    direct_ = pixels.dtype == native<T> && pixels.part[1].count == 0 && (whole || !padded) && !center.given;
    data = direct_ ? reinterpret_cast<T*>(place(pixels, pixels.part[0], tile)) : buffer;
    pitch = direct_ ? pixels.part[0].pixel_stride : vectors_of<T>(channels) * width<T>;
    last_lanes = direct_ && !whole ? channels % width<T> : width<T>;
  }

  void read() const {
    const Channels& first = pixels_.part[0];
    const bool one = pixels_.dtype == native<T> && pixels_.part[1].count == 0;
    for (int64_t p = 0; p < count && !direct_; ++p) {
      T* to = data + p * pitch;
      const T* const from = one ? reinterpret_cast<const T*>(pixel(first, p)) : to;
      if (!one) gather(to, p);
      for (int64_t k = 0; k < pitch; k += width<T>) {
        const int lanes = static_cast<int>(one ? smaller(width<T>, first.count - k) : width<T>);
        store<T>(to + k, (lanes == width<T> ? load(from + k) : load(from + k, lanes)) - load(center_.of + k));
      }
    }
  }

  void write() const {
    for (int64_t p = 0; p < count && !direct_; ++p) {
      const T* from = data + p * pitch;
      for (const Channels& part : pixels_.part) {
        unpack(pixel(part, p), from, pixels_.dtype, {1, part.count, 0, 1});
        from += part.count;
      }
    }
  }

  T* data;
  int64_t pitch;
  const int64_t count;
  int last_lanes;  // of the last vector of a pixel

 private:
  void gather(T* to, int64_t p) const {
    store<T>(to + pitch - width<T>, Vec<T>{});
    for (const Channels& part : pixels_.part) {
      pack(to, pixel(part, p), pixels_.dtype, {1, part.count, 0, 1});
      to += part.count;
    }
  }

  char* pixel(const Channels& part, int64_t p) const {
    return place(pixels_, part, tile_) + p * part.pixel_stride * bytes_of[pixels_.dtype];
  }

  const Pixels& pixels_;
  const PixelTile tile_;
  const ChannelVector<T>& center_;
  bool direct_;
};

}  // namespace fastflow::FASTFLOW_ISA
