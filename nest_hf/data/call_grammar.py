"""Sentences of outbound calls in Mandarin, as they are spoken: a bank, a telephone company, an insurer, a courier."""

import itertools
from dataclasses import dataclass
from functools import cache

import numpy as np

DOMAINS = ("bank", "telecom", "insurance", "courier")
NUM_CHARACTERS = (6, 25)

# Words that the business must not miss. `UNSEEN` ones are for tests alone; their characters occur in other words.
KEYWORDS = {
    "bank": "信用卡 储蓄卡 分期付款 最低还款 账单 逾期 理财产品 定期存款 贷款利率 手机银行 积分".split(),
    "telecom": "套餐 流量包 宽带 话费 国际漫游 光纤 实名认证 会员 携号转网 固定电话".split(),
    "insurance": "车险 重疾险 意外险 保单 理赔 保费 受益人 免赔额 续保 犹豫期 医疗险".split(),
    "courier": "快递柜 运单 取件码 派送 签收 驿站 包裹 货到付款 代收点 退货 保价".split(),
}
UNSEEN_KEYWORDS = {
    "bank": "提前还款 存款利息 转账限额".split(),
    "telecom": "合约机 来电提醒".split(),
    "insurance": "人身险 退保".split(),
    "courier": "寄件人 收货地址 运费".split(),
}
SEEN, UNSEEN = (tuple(itertools.chain(*groups.values())) for groups in (KEYWORDS, UNSEEN_KEYWORDS))

# `{keyword}` is one of the template's own domain, or any other word; the other slots are drawn by `draw_values`.
TEMPLATES = {
    "bank": """您好这里是工商银行客服中心|请问您是{name}本人吗|为了核实身份请说出证件后四位|您的卡号后四位是{tail}对吗
您本月的账单金额是{amount}|您的信用卡欠款一共{amount}|最后还款日是{date}|请在{date}之前还款|您这笔消费是{amount}
您可以办理{months}分期付款|分{months}还每期还{amount}|每期手续费是{percent}|年利率最低只要{percent}
您想了解一下我们的{keyword}吗|关于{keyword}我再跟您说明一下|我们银行的{keyword}最近有优惠活动|您名下的{keyword}需要确认一下
您的{keyword}已经开通成功|您办理的{keyword}将在{date}生效|您是否需要提高临时额度|您的可用额度是{amount}
您有{amount}的限时优惠券没有使用|账户里还有利息{amount}|转账已经到账{amount}|请不要把密码告诉别人|您需要我们提前提醒您吗
验证码{code}请不要告诉他人|您方便{day}{time}来一趟网点吗|您的{keyword}资料还差一份证明
如果还款有困难我们可以考虑延期|系统正在为您换新卡|请从一到五选一个数字|贷款额度多少跟您的收入有关""",
    "telecom": """您好我是中国移动的客户经理|请问这个号码是{name}在使用吗|您的号码{phone}已经停机
您这个月的话费是{amount}|您的余额只剩{amount}了|您预留的联系电话是{phone}吗|您现在用的是每月{amount}的套餐|给您推荐一个更合适的{keyword}
您最近申请的{keyword}已经办好了|您要不要升级一下{keyword}|现在办理{keyword}可以打{discount}|老客户办{keyword}免费送{months}
您的{keyword}在{date}到期|到期以后会自动续约{months}|师傅{day}{time}上门安装|安装费用是{amount}
您本月流量已经用了{percent}|您家里的网络速度怎么样|信号不好的话可以重新启动机器|需要您提供身份证号码后四位
您的订单编号是{code}|每个月可以节省{amount}|我帮您登记一下下午给您回电|您对我们的服务满意吗
不想接到来电可以回复退订|您的{keyword}业务还没有激活|合同约定的费用是{amount}
我给您讲一下{keyword}怎么用|不能上网的话先把手机关了再开|您要是感兴趣就回复一|屏幕上显示的字太小可以放大
套餐变更从下月开始计费|每个月另外加{amount}就可以""",
    "insurance": """您好这里是平安保险公司|请问您是车主{name}吗|您的车险在{date}到期|今年的保费一共是{amount}
您的保单尾号是{tail}|保额最高可以达到{amount}|您之前买过{keyword}吗|我给您介绍一下这款{keyword}|您的{keyword}申请我们已经受理
{keyword}的具体条款我发给您看|关于{keyword}您还有什么疑问吗|您可以在网上查询{keyword}进度|您的{keyword}还需要补充材料
理赔款{amount}已经打到您账户|赔付比例是{percent}|住院费用可以报销{percent}|发生事故请马上拨打{phone}|您的爱人和孩子也可以一起保障
每年交{amount}交满{years}|{years}后可以领取{amount}|请问您的体检报告出来了吗|您的身体情况怎么样|我们{day}{time}给您做回访
投保人的身份信息要如实填写|现在续保可以享受{discount}优惠|您的案件编号是{code}|合同会在{date}寄到您家里
这一段条款请您听清楚|第一次交费会扣{amount}|结果出来以后才能赔付|您贵姓我登记一下
假期里我们也有人值班|刚才谈的{keyword}您记得回家看看|{keyword}手续太多了我帮您办""",
    "courier": """您好我是顺丰快递的|请问是{name}吗|您有一个包裹到了|您的快递放在门口可以吗|您的取件码是{code}
包裹已经放到小区驿站了|请您在{time}之前来取|今天{time}给您送过去|您{day}{time}在家吗|您的运单尾号是{tail}
这个包裹需要付{amount}|货到付款一共{amount}|麻烦您看一下{keyword}的通知|您的{keyword}出了一点问题|我想跟您确认一下{keyword}
您这边的{keyword}需要改一下吗|{keyword}的事情您打{phone}|因为天气原因{keyword}会晚一点|超过{days}没有取会退回去
您的地址是{place}对吗|我现在到{place}楼下了|包裹破损的话我们赔{amount}|寄东西可以打电话{phone}|大件物品我们送货上楼
您要是不在家我{day}再送|地址写错了要重新填一张单子|退款{amount}会原路返回|您好寄往{place}的件到了
那我再打一遍您的电话|这两天下雨路上花的时间多|统一放到{place}您自己拿得了吗|打扰您了我是送快递的""",
}
UNSEEN_TEMPLATES = {
    "bank": """麻烦核对一下姓名是不是{name}|系统显示您还有{amount}没有还|想问问您对{keyword}有没有兴趣
{date}会从卡里扣{amount}|我行的{keyword}现在只收{percent}|刚才这笔{amount}的转账是您做的吗|改天我再给您讲讲{keyword}""",
    "telecom": """我看到您上个月多花了{amount}|想请您给这次{keyword}打个分数|您的{keyword}下个月开始收{amount}
打扰了我们在做{keyword}回访|如果不通请换{phone}联系我|{date}起网络会变快|您看{time}方便接电话吗""",
    "insurance": """请您先听一段{keyword}的说明|上次谈到的{keyword}考虑好了吗|今天不交{amount}就没有保障了
材料收到后{days}出结果|假如住院每天给您{amount}|您自己选的{keyword}是交{years}的|我手上的{keyword}名字是{name}""",
    "courier": """没人在家就放{place}行吗|打您电话{phone}没人接|东西太大了得加{amount}|能不能麻烦您再报一遍{keyword}
{keyword}这里写得不太清楚|师傅说{time}才能到您那里|我给您查到{keyword}是对的""",
}

# Said before a sentence now and then; with them two draws rarely are the same sentence.
OPENERS = """您好|好的|那|是这样的|不好意思|麻烦问一下|另外|嗯|对了|喂您好|我再说一下|稍等一下|{name}您好|{name}
{name}不好意思|{name}是这样的|您看|是的|没关系|明白了|请您记一下|跟您说一声""".replace("\n", "|").split("|")

SURNAMES = "王李张刘陈杨赵黄周吴徐孙"
PLACES = "中山路 人民广场 火车站 市医院 第一小学 科技园 南门 北京东路 前台 物业".split()
DIGITS, TELEPHONE_DIGITS = "零一二三四五六七八九", "零幺二三四五六七八九"  # 1 is yao in telephone numbers
WORD_TAGS, LEAST_COUNT = ("n", "v", "vn"), 20  # of the words of jieba's dictionary that take a keyword's place


@dataclass(frozen=True)
class Sentence:
    """
    What is said, and whether training texts know its `template` and its `keyword` (`seen`, `unseen`, `none`); of
    fragments `domain` and `template` are `none`.
    """

    text: str
    domain: str
    template: str
    keyword: str


def read_mandarin(number: int) -> str:
    """Reads 1 to 9999 in Mandarin: 2050 is 二千零五十, 15 is 十五."""
    words, skipped = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            words += ("零" if skipped and words else "") + DIGITS[digit] + name
        skipped = digit == 0
    return words.removeprefix("一") if 10 <= number < 20 else words


def read_digits(digits, names: str = DIGITS) -> str:
    """Reads digits one by one."""
    return "".join(names[digit] for digit in digits)


def templates(domain: str, *, seen: bool = True) -> list[str]:
    """The templates of a domain, those of training or those of tests alone."""
    return (TEMPLATES if seen else UNSEEN_TEMPLATES)[domain].replace("\n", "|").split("|")


@cache
def dictionary_words() -> tuple[str, ...]:
    """
    Nouns and verbs of jieba's dictionary that the characters of the training texts can write, a few keywords among
    them. With them in a keyword's place any word may stand there, as in a real business.

    Raises:
        ValueError: If jieba is not installed.
    """
    try:
        import jieba
    except ImportError:
        raise ValueError('Words are taken from jieba\'s dictionary; run `pip install "nest_hf[demo]"`.') from None
    pieces = [piece for domain in DOMAINS for template in templates(domain) for piece in literal_pieces(template)]
    known = set("".join([*pieces, *SEEN]))
    with jieba.get_dict_file() as file:
        entries = [line.decode().split() for line in file]
    return tuple(
        word
        for word, count, tag in entries
        if tag in WORD_TAGS and int(count) >= LEAST_COUNT and 2 <= len(word) <= 4 and known.issuperset(word)
    )


def draw_word(rng: np.random.Generator) -> str:
    """Draws one of `dictionary_words`, or two short ones; none of `UNSEEN_KEYWORDS` is in it."""
    words = dictionary_words()
    while True:
        word = words[rng.integers(len(words))]
        if len(word) == 2 and rng.random() < 0.5:
            word += words[rng.integers(len(words))]
        if len(word) <= 4 and not any(keyword in word for keyword in UNSEEN):
            return word


def draw_values(rng: np.random.Generator) -> dict[str, str]:
    """A value for every slot but the keyword."""
    amount = int(10 ** rng.uniform(1, 3.99))
    amount = amount if rng.random() < 0.5 else max(amount // 100 * 100, amount // 10 * 10)
    yuan = read_mandarin(amount)
    if rng.random() < 0.15:
        yuan = read_mandarin(int(rng.integers(1, 100))) + rng.choice(["万", "点五"])
    minute = str(rng.choice(["", "", "半", "十分", "十五分", "二十分", "四十分", "五十分"]))
    half_day, first, last = [("上午", 8, 11), ("下午", 1, 6), ("晚上", 7, 9)][rng.integers(3)]
    day = rng.choice(["今天", "明天", "后天", "周末", *(f"星期{d}" for d in "一二三四五六日")])
    percent = read_mandarin(int(rng.integers(1, 100)))
    percent += f"点{DIGITS[rng.integers(1, 10)]}" * bool(rng.random() < 0.4)
    return {
        "name": str(rng.choice(list(SURNAMES))) + str(rng.choice(["先生", "女士"])),
        "amount": yuan + str(rng.choice(["元", "元", "块钱"])),
        "percent": f"百分之{percent}",
        "discount": f"{DIGITS[rng.integers(5, 10)]}折",
        "date": f"{read_mandarin(int(rng.integers(1, 13)))}月{read_mandarin(int(rng.integers(1, 31)))}号",
        "day": str(day),
        "time": f"{half_day}{read_mandarin(int(rng.integers(first, last + 1)))}点{minute}",
        "months": f"{read_mandarin(int(rng.choice([3, 6, 9, 12, 18, 24])))}个月",
        "years": f"{read_mandarin(int(rng.choice([3, 5, 10, 15, 20])))}年",
        "days": f"{read_mandarin(int(rng.integers(3, 16)))}天",
        "phone": read_digits((1, int(rng.integers(3, 10)), *rng.integers(0, 10, size=9)), TELEPHONE_DIGITS),
        "tail": read_digits(rng.integers(0, 10, size=4)),
        "code": read_digits(rng.integers(0, 10, size=6)),
        "place": str(rng.choice(PLACES)),
    }


def draw_sentence(rng: np.random.Generator, *, seen_template: bool = True, keyword: str | None = None) -> Sentence:
    """
    Draws a domain, a template of it, and a value for each of its slots.

    Args:
        rng (`np.random.Generator`): Of all draws.
        seen_template (`bool`, *optional*, defaults to `True`): One of the templates that training texts use.
        keyword (`str`, *optional*):
            The word that takes the keyword's place, in a sentence of its domain if it is a keyword. Without it the
            template may have no such place, and none of `UNSEEN_KEYWORDS` occurs.
    """
    domain = str(rng.choice(DOMAINS))
    for name in DOMAINS:
        if keyword in KEYWORDS[name] + UNSEEN_KEYWORDS[name]:
            domain = name
    choices = [t for t in templates(domain, seen=seen_template) if keyword is None or "{keyword}" in t]
    while True:
        opener = str(rng.choice(OPENERS)) if rng.random() < 0.5 else ""
        slot = keyword or str(rng.choice(KEYWORDS[domain]))
        text = (opener + str(rng.choice(choices))).format(**draw_values(rng), keyword=slot)
        unseen = any(word in text for word in UNSEEN)
        if NUM_CHARACTERS[0] <= len(text) <= NUM_CHARACTERS[1] and unseen == (keyword in UNSEEN):
            break
    has_seen = any(word in text for word in SEEN)
    kind = "unseen" if unseen else "seen" if has_seen else "none"
    return Sentence(text, domain, "seen" if seen_template else "unseen", kind)


def draw_fragments(rng: np.random.Generator) -> Sentence:
    """
    Pieces of 2 to 5 characters of sentences, one after another: who hears them has to listen, for they are no sentence
    that could be guessed. None of `UNSEEN_KEYWORDS` occurs.
    """
    while True:
        text, length = "", int(rng.integers(NUM_CHARACTERS[0], NUM_CHARACTERS[1] - 4))
        while len(text) < length:
            sentence = draw_sentence(rng).text
            start = int(rng.integers(len(sentence) - 1))
            text += sentence[start : start + int(rng.integers(2, 6))]
        if not any(word in text for word in UNSEEN):
            break
    has_seen = any(word in text for word in SEEN)
    return Sentence(text, "none", "none", "seen" if has_seen else "none")


def draw_word_row(rng: np.random.Generator) -> str:
    """
    Words of a dictionary, one after another: a language model that has read no others than those of the templates
    writes one of them wherever it hears another. None of `UNSEEN_KEYWORDS` occurs.
    """
    while True:
        text, length = "", int(rng.integers(NUM_CHARACTERS[0], NUM_CHARACTERS[1] - 4))
        while len(text) < length:
            text += draw_word(rng)
        if not any(word in text for word in UNSEEN):
            return text


def literal_pieces(template: str) -> list[str]:
    """What a template says around its slots."""
    return [piece.rpartition("}")[2] for piece in template.split("{")]


def keyword_file() -> str:
    """All keywords in the form of [`~nest_hf.keywords.read_keywords`], in groups by domain."""
    groups = [f"[{domain}]\n" + "\n".join(KEYWORDS[domain] + UNSEEN_KEYWORDS[domain]) for domain in DOMAINS]
    return "# Words that the calls must not miss\n" + "\n".join(groups) + "\n"
