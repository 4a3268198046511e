// Philox-4x32-10 (Salmon et al., SC 2011) and Box and Muller's transform, with the bits of backends/torch/philox.py.
#pragma once

#include "portable.cuh"

struct Words {
  unsigned at[4];
};

struct Normals {
  float at[4];
};

// The words of the counter (counter, step, 0, 0).
ORTHO_DEVICE Words philox(unsigned counter, unsigned step, long long seed) {
  unsigned c0 = counter, c1 = step, c2 = 0, c3 = 0;
  unsigned key0 = static_cast<unsigned>(seed);
  unsigned key1 = static_cast<unsigned>(static_cast<unsigned long long>(seed) >> 32);
#pragma unroll
  for (int round = 0; round < 10; ++round) {
    const unsigned long long first = 0xD2511F53ull * c0, second = 0xCD9E8D57ull * c2;
    c0 = static_cast<unsigned>(second >> 32) ^ c1 ^ key0;
    c1 = static_cast<unsigned>(second);
    c2 = static_cast<unsigned>(first >> 32) ^ c3 ^ key1;
    c3 = static_cast<unsigned>(first);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// A word as a number in [0, 1): its 31 lower bits, turned round where the highest is set.
ORTHO_DEVICE float uniform(unsigned word) {
  const unsigned turned = word & 0x80000000u ? ~word : word;
  return static_cast<float>(static_cast<int>(turned)) * 4.6566127342e-10f;
}

// Two unit normal numbers out of two uniform ones (Box & Muller 1958).
ORTHO_DEVICE void normal_pair(float first, float second, float& cosine, float& sine) {
  const float radius = sqrtf(-2.0f * logf(fmaxf(first, 1.0e-7f)));
  sincosf(6.283185307179586f * second, &sine, &cosine);
  cosine *= radius;
  sine *= radius;
}

// The noise of places 4 counter to 4 counter + 3.
ORTHO_DEVICE Normals normals(unsigned counter, unsigned step, long long seed) {
  const Words words = philox(counter, step, seed);
  Normals made;
  normal_pair(uniform(words.at[0]), uniform(words.at[1]), made.at[0], made.at[1]);
  normal_pair(uniform(words.at[2]), uniform(words.at[3]), made.at[2], made.at[3]);
  return made;
}
