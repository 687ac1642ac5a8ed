"""Sentences of outbound calls in Mandarin: templates, business keywords, numbers as they are spoken.

The test set has templates and keywords that no training text has (`UNSEEN_...`), made of characters that it does have.
"""

import numpy as np

KEYWORDS = {
    "产品": "信用卡 储蓄卡 理财产品 贷款 流量套餐 宽带 话费 保险 基金 定期存款 积分 会员卡",
    "业务": "办理业务 开通 取消 升级 续费 还款 转账 挂失 激活 充值 退款 投诉",
    "身份": "身份证 验证码 手机号 账户余额 收货地址 合同编号",
    "服务": "人工服务 客户经理 优惠活动 分期付款 最低还款 年费 手续费 逾期 账单 额度",
}
UNSEEN_KEYWORDS = {"产品": "车险 房贷 医保卡 公积金 保单 储值卡 定投", "服务": "手机银行 理财经理 电子账户"}
SLOTS = {
    "product": KEYWORDS["产品"].split(),
    "action": "开通 取消 升级 续费 挂失 激活 充值 退款".split(),
    "service": "优惠活动 分期付款 最低还款 年费 手续费 账单 额度".split(),
    "org": "银行 电信公司 保险公司 快递公司 客服中心 医院 房屋中心".split(),
    "name": [f"{name}{title}" for name in "王李张刘陈杨赵黄周吴" for title in ("先生", "女士", "老师")],
    "place": "北京 上海 广州 停车场 公司门口 小区 电子市场 手机商店 车站".split(),
}
TEMPLATES = """您好我是{org}的客服请问是{name}吗|您好{name}我这里是{org}|请问您现在方便接电话吗
打扰您了祝您生活愉快再见
您的{product}已经{action}成功了|您想{action}{product}吗|我想{action}我的{product}|请问怎么{action}{product}|帮我{action}一下{product}
您的{product}将在{date}到期|您的{product}还有{count}天就到期了|这个{product}每个月只要{amount}元|{product}的{service}是{amount}元
您本月的{service}是{amount}元|您的账户余额是{amount}元|您的{product}已经逾期{count}天了请尽快还款|请您在{date}以前还款{amount}元
您要转账{amount}元对吗|您的最低还款是{amount}元|我们现在有{service}您需要了解吗|{product}现在有优惠活动利率是{percent}
年利率是{percent}非常合适|这款理财产品的收益是{percent}|您可以分期付款一共{count}期|每期还款{amount}元手续费是{percent}
请您说一下身份证的后四位|我的身份证后四位是{four}|请告诉我您的验证码|我的验证码是{code}|验证码是{code}请不要告诉别人
请核对一下您的手机号|我的手机号是{phone}|请拨打{phone}联系客户经理|您的合同编号是{code}|我的合同编号是{code}
您的收货地址是{place}对吗|请把快递送到{place}|我{clock}在{place}等您|快递{clock}送到{place}|您的快件已经到{place}了
我要投诉你们的服务|请帮我转人工服务|我要办理业务请转人工服务|客户经理{clock}给您回电话|我们约在{date}{clock}好吗
好的没问题谢谢您|对不起我现在很忙请{clock}再打来|我不需要{product}谢谢|我听不清楚请再说一遍|请您稍等我查询一下
您的{product}额度是{amount}元|我的额度可以提高到{amount}元吗|账单日是每个月{day}号|账单已经发到您的电子信箱
您在{date}消费了{amount}元|请问这笔{amount}元是您本人消费的吗|如果不是本人请马上挂失|{name}您的{product}年费是{amount}元
您的积分可以换{count}元话费|宽带{action}以后网速更快|流量套餐已经用完了请充值|给手机号{phone}充值{amount}元
医院通知您{date}{clock}来检查
这件事情我再算一下|麻烦您从头开始说|关于合同请问客户经理|比上个月便宜了{amount}元|剩下的钱下个月还
公司{date}开会请准时到|停车费一共{amount}元|投资有风险请您注意|我的钱什么时候到账""".replace(
    "\n", "|"
).split("|")
UNSEEN_TEMPLATES = """请问{product}的{service}怎么算|{name}您好关于{product}的事情想通知您
如果{clock}不方便我{date}再联系您
我上个月充值的{amount}元还没到账|你们的{product}比别的公司便宜吗|这笔{amount}元的{service}可以退吗|麻烦您告诉我{product}的合同编号
从{date}开始{product}的利率是{percent}|我已经在{place}门口等了{count}天|请发一份{product}的账单到我的手机|您还需要别的服务吗
先付{amount}元剩下的分{count}期还|可以用积分换{product}吗|我人在{place}请{clock}以后再送|本人的{product}需要马上{action}""".replace(
    "\n", "|"
).split("|")
DIGITS, TELEPHONE_DIGITS = "零一二三四五六七八九", "零幺二三四五六七八九"  # 1 is yao in telephone numbers


def read_number(number: int) -> str:
    """Reads 1 to 99999 in Mandarin: 2050 is 二千零五十, 15 is 十五."""
    if number >= 10_000:
        rest = number % 10_000
        return read_number(number // 10_000) + "万" + ("零" * (0 < rest < 1000) + _read_rest(rest) if rest else "")
    words = _read_rest(number)
    return words.removeprefix("一") if 10 <= number < 20 else words


def _read_rest(number: int) -> str:
    words, skipped = "", False
    for unit, name in ((1000, "千"), (100, "百"), (10, "十"), (1, "")):
        digit = number // unit % 10
        if digit:
            words += ("零" if skipped and words else "") + DIGITS[digit] + name
        skipped = digit == 0
    return words


def read_percent(tenths: int) -> str:
    """Reads tenths of a per cent: 35 is 百分之三点五."""
    whole, part = divmod(tenths, 10)
    return "百分之" + (read_number(whole) if whole else "零") + (f"点{DIGITS[part]}" if part else "")


def draw_sentence(
    rng: np.random.Generator, *, unseen_template: bool = False, unseen_keyword: str | None = None
) -> str:
    """
    A template with a value for each of its slots.

    Args:
        rng (`np.random.Generator`): Decides all of it.
        unseen_template (`bool`, *optional*, defaults to `False`): One of those that no training text has.
        unseen_keyword (`str`, *optional*): Stands where a product would; the template is one that has a product.
    """
    templates = UNSEEN_TEMPLATES if unseen_template else TEMPLATES
    if unseen_keyword is not None:
        templates = [template for template in templates if "{product}" in template]
    template = templates[rng.integers(len(templates))]
    values = {name: choices[rng.integers(len(choices))] for name, choices in SLOTS.items()}
    month, day, hour, half = rng.integers([1, 1, 1, 0], [13, 29, 13, 2]).tolist()
    digits = rng.integers(0, 10, 9).tolist()
    if unseen_keyword is not None:
        values["product"] = unseen_keyword
    part_of_day = ("上午", "下午", "晚上")[rng.integers(3)]
    return template.format(
        **values,
        amount=read_number(int(10 ** rng.uniform(0.5, 4.6))),
        percent=read_percent(int(rng.integers(5, 180))),
        count=read_number(int(rng.integers(2, 37))),
        day=read_number(day),
        date=f"{read_number(month)}月{read_number(day)}号",
        clock=f"{part_of_day}{read_number(hour)}点{'半' * half}",
        phone="".join(TELEPHONE_DIGITS[digit] for digit in (1, 3, *digits)),
        code="".join(DIGITS[digit] for digit in digits[:6]),
        four="".join(DIGITS[digit] for digit in digits[:4]),
    )


def keyword_file() -> str:
    """All keywords in the form of [`~keywords.read_keywords`], those of the test set alone included."""
    groups = {name: f"{words} {UNSEEN_KEYWORDS.get(name, '')}".split() for name, words in KEYWORDS.items()}
    return "".join(f"[{name}]\n" + "".join(f"{word}\n" for word in words) for name, words in groups.items())


def unseen_keywords() -> list[str]:
    """Keywords of the test set alone."""
    return [word for words in UNSEEN_KEYWORDS.values() for word in words.split()]


__all__ = ["draw_sentence", "keyword_file", "read_number", "read_percent", "unseen_keywords"]
