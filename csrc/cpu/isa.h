// One source, compiled once per instruction set into a namespace of its own; the best that runs here is chosen anew
// by every call and by every object that is made.
//
// A kernel's file is compiled with ORTHOKERNELS_ISA set to portable, avx2 or avx512 (see CMakeLists.txt) and defines a
// table of functions in orthokernels::cpu::ORTHOKERNELS_ISA. Such files call no inline function that others have too, of
// the standard library or ours, unless it is static or always inlined: the linker might keep the copy of the wider
// instruction set for everyone.
#pragma once

#include <stdexcept>

namespace orthokernels::cpu {

enum class Isa { portable, avx2, avx512 };

// The widest that processor and operating system support and that was compiled, or a lower one that was asked for in
// the environment variable ORTHOKERNELS_ISA; nobody may write the environment meanwhile, which Python does under the
// GIL. Throws std::invalid_argument where that can not run here.
Isa best_isa();

const char* name_of(Isa isa);

// Vector registers hold so many floats.
inline int lanes_of(Isa isa) { return isa == Isa::avx512 ? 16 : isa == Isa::avx2 ? 8 : 4; }

// The table of a kernel for an instruction set. Tables that were not compiled here are null.
template <typename Table>
const Table& table_for(Isa isa, const Table* portable, const Table* avx2, const Table* avx512) {
  const Table* found = isa == Isa::avx512 ? avx512 : isa == Isa::avx2 ? avx2 : portable;
  if (found == nullptr) throw std::invalid_argument("this instruction set was not compiled");
  return *found;
}

}  // namespace orthokernels::cpu

// Declares a kernel's tables, and a function that picks one. An instruction set that was not compiled has none.
#define ORTHOKERNELS_TABLE(Table, name, isa) \
  namespace isa {                            \
  extern const Table name;                   \
  }
#if defined(__x86_64__) && !defined(ORTHOKERNELS_WITHOUT_AVX512)
#define ORTHOKERNELS_TABLES(Table, name)     \
  ORTHOKERNELS_TABLE(Table, name, portable)  \
  ORTHOKERNELS_TABLE(Table, name, avx2)      \
  ORTHOKERNELS_TABLE(Table, name, avx512)    \
  inline const Table& name##_for(Isa isa) { return table_for<Table>(isa, &portable::name, &avx2::name, &avx512::name); }
#elif defined(__x86_64__)
#define ORTHOKERNELS_TABLES(Table, name)    \
  ORTHOKERNELS_TABLE(Table, name, portable) \
  ORTHOKERNELS_TABLE(Table, name, avx2)     \
  inline const Table& name##_for(Isa isa) { return table_for<Table>(isa, &portable::name, &avx2::name, nullptr); }
#else
#define ORTHOKERNELS_TABLES(Table, name)    \
  ORTHOKERNELS_TABLE(Table, name, portable) \
  inline const Table& name##_for(Isa isa) { return table_for<Table>(isa, &portable::name, nullptr, nullptr); }
#endif
