// Included by nms_simd.h once for each instruction set, inside a namespace of its own, with
// D2PROJ_TARGET holding the function attribute that selects it. `Lanes` wraps one vector type.

template <typename Lanes, typename T, typename Criterion>
D2PROJ_TARGET inline __attribute__((always_inline)) bool scan_slots(const Query<T, Criterion>& query,
                                                                    const KeptView<T>& kept, int64_t slot,
                                                                    int64_t end) {
  using Vector = typename Lanes::Vector;
  const Vector zero = Lanes::broadcast(T(0));
  const Vector exact = Lanes::broadcast(query.exact), loose = Lanes::broadcast(query.loose);
  const Vector query_area = Lanes::broadcast(query.area);
  const Vector query_x1 = Lanes::broadcast(query.box.x1), query_y1 = Lanes::broadcast(query.box.y1);
  const Vector query_x2 = Lanes::broadcast(query.box.x2), query_y2 = Lanes::broadcast(query.box.y2);
  for (; slot < end; slot += Lanes::count) {
    const T* const first = kept.data + slot;
    const Vector left = Lanes::max(Lanes::load(first), query_x1);
    const Vector top = Lanes::max(Lanes::load(first + kept.stride), query_y1);
    const Vector right = Lanes::min(Lanes::load(first + 2 * kept.stride), query_x2);
    const Vector bottom = Lanes::min(Lanes::load(first + 3 * kept.stride), query_y2);
    Vector inter = Lanes::max(right - left, zero) * Lanes::max(bottom - top, zero);
    D2PROJ_ROUND_NOW(inter);
    const Vector both = (Lanes::load(first + 4 * kept.stride) + query_area) - inter;
    // A product decides nearly always; only where it cannot is the quotient worth its price.
    if (Lanes::any_greater(inter, loose * both) && Lanes::any_greater(inter / both, exact) &&
        query.confirms(kept, slot, Lanes::count)) {
      return true;
    }
  }
  return false;
}

template <typename Lanes, typename T, typename Criterion>
D2PROJ_TARGET bool scan(const Query<T, Criterion>& query, const KeptView<T>& kept, const uint32_t* from,
                        const uint32_t* to, const Window& window) {
  // Most boxes that fall do so to a box centred in their own cell.
  if (scan_slots<Lanes>(query, kept, from[window.home], to[window.home])) {
    return true;
  }
  for (int32_t row = window.top; row <= window.bottom; ++row) {
    const int64_t first = int64_t(row) * window.columns;
    for (int64_t cell = first + window.left; cell <= first + window.right; ++cell) {
      if (cell != window.home && scan_slots<Lanes>(query, kept, from[cell], to[cell])) {
        return true;
      }
    }
  }
  return false;
}
