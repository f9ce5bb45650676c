// Prints what CuTe says about the layouts that tests/hopper/test_cute.py compares with.
// Lines: name, colon, numbers.
#include <cstdio>
#include <cute/tensor.hpp>
#include <cute/atom/mma_traits_sm80.hpp>
#include <cute/atom/mma_traits_sm90_gmma.hpp>

using namespace cute;

template <class F>
void print_function(char const* name, int size, F const& f) {
  std::printf("%s:", name);
  for (int i = 0; i < size; ++i) std::printf(" %d", int(f(i)));
  std::printf("\n");
}

template <class L>
void print_layout(char const* name, L const& layout) {
  print_function(name, int(size(layout)), layout);
}

int main() {
  auto a = make_layout(make_shape(_6{}, _2{}), make_stride(_8{}, _2{}));
  auto b = make_layout(make_shape(_4{}, _3{}), make_stride(_3{}, _1{}));
  print_layout("composition", composition(a, b));
  auto row = make_layout(make_shape(_8{}, _16{}), make_stride(_16{}, _1{}));
  auto nested = make_layout(make_shape(make_shape(_2{}, _4{}), _3{}), make_stride(make_stride(_12{}, _1{}), _4{}));
  print_layout("composition nested", composition(nested, Layout<_12, _2>{}));
  print_layout("complement", complement(Layout<Shape<_2, _2>, Stride<_1, _6>>{}, _24{}));
  print_layout("logical_divide", logical_divide(make_layout(make_shape(_4{}, _2{}, _3{}), make_stride(_2{}, _1{}, _8{})), Layout<_4, _2>{}));
  auto zipped = zipped_divide(row, make_tile(Layout<_4>{}, Layout<_8>{}));
  print_layout("zipped_divide tile", get<0>(zipped));
  print_layout("zipped_divide rest", get<1>(zipped));
  print_layout("logical_product", logical_product(make_layout(make_shape(_2{}, _2{}), make_stride(_4{}, _1{})), Layout<_6, _1>{}));
  auto block = make_layout(make_shape(_2{}, _5{}), make_stride(_5{}, _1{}));
  auto tiler = make_layout(make_shape(_3{}, _4{}), make_stride(_1{}, _3{}));
  print_layout("blocked_product", blocked_product(block, tiler));
  print_layout("raked_product", raked_product(block, tiler));

  print_function("Sw<3,4,3>", 2048, Swizzle<3, 4, 3>{});
  print_function("Sw<2,4,3>", 2048, Swizzle<2, 4, 3>{});
  print_function("Sw<1,4,3>", 2048, Swizzle<1, 4, 3>{});
  print_layout("atom 128", as_position_independent_swizzle_layout(GMMA::Layout_K_SW128_Atom<cute::bfloat16_t>{}));
  print_layout("atom 64", as_position_independent_swizzle_layout(GMMA::Layout_K_SW64_Atom<cute::bfloat16_t>{}));
  print_layout("atom 32", as_position_independent_swizzle_layout(GMMA::Layout_K_SW32_Atom<cute::bfloat16_t>{}));

  using M16 = MMA_Traits<SM80_16x8x16_F32BF16BF16F32_TN>;
  print_layout("mma A", M16::ALayout{});
  print_layout("mma B", M16::BLayout{});
  print_layout("mma C", M16::CLayout{});
  using M64 = MMA_Traits<SM90_64x64x16_F32BF16BF16_RS<GMMA::Major::K, GMMA::Major::K>>;
  print_layout("wgmma A", M64::ALayout{});
  print_layout("wgmma C", M64::CLayout{});
}
