"""Language codes: how the multilingual families mark the language of a text.

The order of a list is the order of its token ids, as fairseq laid the vocabularies out.
"""

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from xattn.errors import UsageError


def _codes(listed: str) -> tuple[str, ...]:
    return tuple(listed.split())


MBART = _codes(
    """
    ar_AR cs_CZ de_DE en_XX es_XX et_EE fi_FI fr_XX gu_IN hi_IN it_IT ja_XX kk_KZ ko_KR lt_LT
    lv_LV my_MM ne_NP nl_XX ro_RO ru_RU si_LK tr_TR vi_VN zh_CN
    """
)
"""mBART (Liu et al. 2020, arXiv 2001.08210)."""

MBART50 = MBART + _codes(
    """
    af_ZA az_AZ bn_IN fa_IR he_IL hr_HR id_ID ka_GE km_KH mk_MK ml_IN mn_MN mr_IN pl_PL ps_AF
    pt_XX sv_SE sw_KE ta_IN te_IN th_TH tl_XX uk_UA ur_PK xh_ZA gl_ES sl_SI
    """
)
"""mBART-50 (Tang et al. 2020, arXiv 2008.00401): mBART's, then these."""

NLLB = _codes(
    """
    ace_Arab ace_Latn acm_Arab acq_Arab aeb_Arab afr_Latn ajp_Arab aka_Latn amh_Ethi apc_Arab
    arb_Arab ars_Arab ary_Arab arz_Arab asm_Beng ast_Latn awa_Deva ayr_Latn azb_Arab azj_Latn
    bak_Cyrl bam_Latn ban_Latn bel_Cyrl bem_Latn ben_Beng bho_Deva bjn_Arab bjn_Latn bod_Tibt
    bos_Latn bug_Latn bul_Cyrl cat_Latn ceb_Latn ces_Latn cjk_Latn ckb_Arab crh_Latn cym_Latn
    dan_Latn deu_Latn dik_Latn dyu_Latn dzo_Tibt ell_Grek eng_Latn epo_Latn est_Latn eus_Latn
    ewe_Latn fao_Latn pes_Arab fij_Latn fin_Latn fon_Latn fra_Latn fur_Latn fuv_Latn gla_Latn
    gle_Latn glg_Latn grn_Latn guj_Gujr hat_Latn hau_Latn heb_Hebr hin_Deva hne_Deva hrv_Latn
    hun_Latn hye_Armn ibo_Latn ilo_Latn ind_Latn isl_Latn ita_Latn jav_Latn jpn_Jpan kab_Latn
    kac_Latn kam_Latn kan_Knda kas_Arab kas_Deva kat_Geor knc_Arab knc_Latn kaz_Cyrl kbp_Latn
    kea_Latn khm_Khmr kik_Latn kin_Latn kir_Cyrl kmb_Latn kon_Latn kor_Hang kmr_Latn lao_Laoo
    lvs_Latn lij_Latn lim_Latn lin_Latn lit_Latn lmo_Latn ltg_Latn ltz_Latn lua_Latn lug_Latn
    luo_Latn lus_Latn mag_Deva mai_Deva mal_Mlym mar_Deva min_Latn mkd_Cyrl plt_Latn mlt_Latn
    mni_Beng khk_Cyrl mos_Latn mri_Latn zsm_Latn mya_Mymr nld_Latn nno_Latn nob_Latn npi_Deva
    nso_Latn nus_Latn nya_Latn oci_Latn gaz_Latn ory_Orya pag_Latn pan_Guru pap_Latn pol_Latn
    por_Latn prs_Arab pbt_Arab quy_Latn ron_Latn run_Latn rus_Cyrl sag_Latn san_Deva sat_Beng
    scn_Latn shn_Mymr sin_Sinh slk_Latn slv_Latn smo_Latn sna_Latn snd_Arab som_Latn sot_Latn
    spa_Latn als_Latn srd_Latn srp_Cyrl ssw_Latn sun_Latn swe_Latn swh_Latn szl_Latn tam_Taml
    tat_Cyrl tel_Telu tgk_Cyrl tgl_Latn tha_Thai tir_Ethi taq_Latn taq_Tfng tpi_Latn tsn_Latn
    tso_Latn tuk_Latn tum_Latn tur_Latn twi_Latn tzm_Tfng uig_Arab ukr_Cyrl umb_Latn urd_Arab
    uzn_Latn vec_Latn vie_Latn war_Latn wol_Latn xho_Latn ydd_Hebr yor_Latn yue_Hant zho_Hans
    zho_Hant zul_Latn
    """
)
"""NLLB-200 (arXiv 2207.04672), FLORES-200 codes."""

M2M100 = _codes(
    """
    af am ar ast az ba be bg bn br bs ca ceb cs cy da de el en es et fa ff fi fr fy ga gd gl gu
    ha he hi hr ht hu hy id ig ilo is it ja jv ka kk km kn ko lb lg ln lo lt lv mg mk ml mn mr
    ms my ne nl no ns oc or pa pl ps pt ro ru sd si sk sl so sq sr ss su sv sw ta th tl tn tr uk
    ur uz vi wo xh yi yo zh zu
    """
)
"""M2M-100 (Fan et al. 2020, arXiv 2010.11125)."""

WMT21 = _codes(
    """
    en ha is ja cs ru zh de
    """
)
"""Facebook's WMT21 models, which use M2M-100's tokenizer."""


@dataclass(frozen=True, kw_only=True)
class LanguageRule:
    """How a family writes the source language around a text."""

    codes: re.Pattern[str]
    """What its language tokens look like."""
    default: str
    """The language that is assumed when neither the checkpoint nor the caller names one."""
    place: Literal["before", "after"]
    """``before``: code, text, end of sequence. ``after``: text, end of sequence, code."""
    starts_decoding: bool = False
    """The target's code stands in place of the decoder start token, and not after it."""


RULES: Mapping[str, LanguageRule] = {
    "mbart": LanguageRule(
        codes=re.compile(r"[a-z]{2}_[A-Z]{2}"),
        default="en_XX",
        place="after",
        starts_decoding=True,
    ),
    "mbart50": LanguageRule(
        codes=re.compile(r"[a-z]{2}_[A-Z]{2}"), default="en_XX", place="before"
    ),
    "nllb": LanguageRule(
        codes=re.compile(r"[a-z]{3}_[A-Z][a-z]{3}"), default="eng_Latn", place="before"
    ),
}


def unknown_language(language: str, known: Iterable[str]) -> UsageError:
    """The error for a code that a model does not know: it names the near ones."""
    codes = sorted(known)
    if not codes:
        return UsageError(
            f"this model reads one language only; leave the source language out "
            f"(found {language!r})."
        )
    near = []
    for length in (2, 1):
        start = language.casefold()[:length]
        near += [code for code in codes if code.casefold().startswith(start)]
        near += difflib.get_close_matches(language, codes, n=3, cutoff=0.5)
    shown = list(dict.fromkeys([*near, *codes]))[:6]
    return UsageError(
        f"the source language must be one of this model's {len(codes)} codes, but is {language!r} "
        f"instead; near ones: {', '.join(shown)}."
    )
