"""Optimal transport between measures, as values that autograd knows: on the line, between Gaussians, by plans, sliced.

All values are of ½W₂² or its like, in float64. A plan is locally constant in the points, and so its derivatives are
those of ½ Σ_ij P_ij |x_i − y_j|² with P held fixed (the envelope theorem). The derivative in the weights is a potential
φ of Kantorovich's, normalised by ∫ φ dρ = 0: it is the derivative of w ↦ F(w / Σw).
"""
