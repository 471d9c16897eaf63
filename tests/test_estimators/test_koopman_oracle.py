# SPDX-License-Identifier: Apache-2.0
"""The fitted map of KoopmanAutoencoder against kooplearn on the same latents."""

import numpy as np
import pytest
import torch

from clusterplug.estimators.deep import KoopmanAutoencoder
from clusterplug.functional import linear_dynamics
from clusterplug.testing.toy_dynamics import pendulum


@pytest.mark.parametrize('reduced_rank', [True, False])
def test_kooplearn_has_the_same_eigenvalues(reduced_rank):
    models = pytest.importorskip('kooplearn.linear_model', reason='needs kooplearn, an oracle that nothing else uses')
    X = pendulum(1, steps=120)
    options = dict(operator='ridge', ridge=0.05, window=20, epochs=2, contrast_weight=0.1)
    model = KoopmanAutoencoder(6, hidden=(16,), **options).fit(X)
    z = model.transform(X)[0].astype(np.float64)
    # their covariances are means over the pairs, so that their alpha is our ridge over the number of pairs
    theirs = models.Ridge(6, reduced_rank=reduced_rank, alpha=0.05 / 119, eigen_solver='dense').fit(z)
    expected = np.sort_complex(theirs.eig())
    pairs = (torch.from_numpy(part) for part in (z[:-1], z[1:]))
    found = np.linalg.eigvals(linear_dynamics(*pairs, ridge=0.05))
    np.testing.assert_allclose(np.sort_complex(found), expected, rtol=0, atol=1e-6)
    np.testing.assert_allclose(np.sort(np.abs(model.spectrum())), np.sort(np.abs(expected)), rtol=0, atol=1e-4)  # fp32
    np.testing.assert_allclose(z[:1] @ model.operator_, theirs.predict(z[:1]), rtol=0, atol=1e-4 * np.abs(z).max())
