"""What may be uploaded: each dataset with its kinds of record and the columns these must have.

Columns are named as the files name them. A kind is recognised by its columns, the first that fits.
"""

from __future__ import annotations

from collections.abc import Mapping

DATASETS: Mapping[str, Mapping[str, tuple[str, ...]]] = {
    "product_catalog": {"product": ("product_id",)},
    "demographic_data": {"household": ("household_id",)},
    "campaign_data": {
        # the most particular first: a redemption names its household and campaign as well
        "redemption": ("household_id", "coupon_upc", "redemption_date"),
        "coupon": ("coupon_upc", "product_id"),
        "campaign": ("campaign_id", "campaign_type"),
        "campaign_household": ("campaign_id", "household_id"),
    },
    "store_locations": {"store": ("store_id",)},
}
