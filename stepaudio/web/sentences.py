"""The sentences of errors and notices in Chinese.

They arise in English, in the part that knows the limit; here each is recognised by its template, and its values are
put into the Chinese one. A sentence without a template stays English.
"""

from __future__ import annotations

import re

from stepaudio.web.strings import Language

CHINESE = {
    "The reference file is empty (0 bytes).": "参考音频文件是空的（0 字节）。",
    "The reference file has {size} MB; the limit is {limit} MB.": "参考音频文件为 {size} MB；上限为 {limit} MB。",
    "The reference holds values that are not numbers (NaN or infinity); please export it again.": (
        "参考音频中含有非数字的值（NaN 或无穷大）；请重新导出。"
    ),
    "The reference is {length} s long; at least {limit} s are needed.": (
        "参考音频长 {length} 秒；至少需要 {limit} 秒。"
    ),
    "The reference is {length} s long; at most {limit} s are allowed.": (
        "参考音频长 {length} 秒；最长允许 {limit} 秒。"
    ),
    "The reference is {length} s long; its first {limit} s are used.": (
        "参考音频长 {length} 秒；只使用前 {limit} 秒。"
    ),
    "The reference is longer than {length} s; at most {limit} s are allowed.": (
        "参考音频超过 {length} 秒；最长允许 {limit} 秒。"
    ),
    "The reference is longer than {length} s; its first {limit} s are used.": (
        "参考音频超过 {length} 秒；只使用前 {limit} 秒。"
    ),
    "The reference is silent (peak: {level}); please choose a recording with a voice in it.": (
        "参考音频是静音的（峰值：{level}）；请选择含有人声的录音。"
    ),
    "The reference cannot be read as sound; please give {formats}.": (
        "无法将参考文件作为声音读取；支持的格式：{formats}。"
    ),
    "The reference holds no sound (0 samples).": "参考音频中没有声音（0 个采样）。",
    "The reference has {rate} samples a second; {least} to {most} are allowed.": (
        "参考音频每秒有 {rate} 个采样；允许范围为 {least} 到 {most}。"
    ),
    "The reference has {count} channels; at most {most} are allowed.": (
        "参考音频有 {count} 个声道；最多允许 {most} 个。"
    ),
    "The reference could not be decoded within {limit} s.": "参考音频无法在 {limit} 秒内解码。",
    "The reference is too short: it gives no speech codes.": "参考音频太短：得不到语音编码。",
    "The uploaded reference is no longer there; please upload it again.": "上传的参考音频已不存在；请重新上传。",
    "The text is empty.": "要朗读的文本是空的。",
    "The transcript of the reference is empty.": "参考文本是空的。",
    "The text has {count} characters; the limit is {limit}.": "要朗读的文本有 {count} 个字符；上限为 {limit}。",
    "The transcript of the reference has {count} characters; the limit is {limit}.": (
        "参考文本有 {count} 个字符；上限为 {limit}。"
    ),
    "The text holds nothing that can be spoken: no letter, no digit.": "要朗读的文本中没有文字或数字。",
    "The new text holds nothing that can be spoken: no letter, no digit.": "新文本中没有文字或数字。",
    "The transcript of the reference holds nothing that can be spoken: no letter, no digit.": (
        "参考文本中没有文字或数字。"
    ),
    "There is a saved voice {name} already; please choose another name, or rename that one.": (
        "已有名为 {name} 的声音；请换一个名称，或先将其重命名。"
    ),
    "{name} is a voice that came with the weights; please choose another name.": (
        "{name} 是随模型附带的声音；请换一个名称。"
    ),
    "The seed is {seed}; it must lie between {least} and {most}.": (
        "随机种子为 {seed}；必须在 {least} 到 {most} 之间。"
    ),
    "The name of the voice is empty.": "请填写声音的名称。",
    "{what} has {count} characters; the limit is {limit}.": "{what} 有 {count} 个字符；上限为 {limit}。",
    "The new text is empty.": "新文本是空的。",
    "There is no saved voice {name}.": "没有名为 {name} 的已保存声音；可能已被删除。",
    "There is no preset voice {name}.": "没有名为 {name} 的预设声音。",
    "There are {count} saved voices, which is the limit; please remove one first.": (
        "已保存 {count} 个声音，达到上限；请先删除一个。"
    ),
    "The saved voices have {held} MB and this one {size} MB; the limit is {limit} MB in all; "
    "please remove one first.": "已保存的声音共 {held} MB，此声音 {size} MB；总上限为 {limit} MB；请先删除一个。",
    "The file is not a voice that stepaudio has exported: {reason}.": "该文件不是 stepaudio 导出的声音：{reason}。",
    "The file has {size} MB; the limit is {limit} MB.": "文件为 {size} MB；上限为 {limit} MB。",
    "The history has {count} steps, which is the limit; please clear it.": (
        "历史已有 {count} 个步骤，达到上限；请清空。"
    ),
    "The history was cleared or begun anew meanwhile; the result was not added.": (
        "历史在此期间已被清空或重新开始；结果未被加入。"
    ),
    "There is no step {number} in the history.": "历史中没有步骤 {number}。",
    "Pass {number} gave only {seconds} s of sound; trying again may help.": (
        "第 {number} 遍只得到 {seconds} 秒声音；请再试一次。"
    ),
    "The number of {what} is {value}; it must lie between {least} and {most}.": (
        "{what} 的数值为 {value}；必须在 {least} 到 {most} 之间。"
    ),
    "The {what} is {value}; it must lie between {least} and {most}.": (
        "{what} 为 {value}；必须在 {least} 到 {most} 之间。"
    ),
    "The prompt is {count} ids long; the model takes {least} to {most}. A shorter reference or text would fit.": (
        "提示长 {count} 个编码；模型可接受 {least} 到 {most} 个。请缩短参考音频或文本。"
    ),
    "The line is full with {count} waiting; please try again in a minute.": (
        "队列已满，有 {count} 个请求在等待；请稍后再试。"
    ),
    "The program is being shut down and takes no more jobs; please try again later.": (
        "程序正在关闭，不再接受请求；请稍后再试。"
    ),
    "The cache in {folder} cannot be written ({reason}); requests still work, but new voices are encoded every time.": (
        "无法写入缓存 {folder}（{reason}）；请求仍可正常处理，但每个新声音都需要重新编码。"
    ),
    "There is not enough memory for this request; a shorter reference or a shorter text may fit.": (
        "内存不足，无法完成此请求；请缩短参考音频或文本。"
    ),
    "The request waited {seconds} s for its turn.": "请求排队等候了 {seconds} 秒。",
    "The reference recording is too short: it must hold at least {seconds} seconds of sound.": (
        "参考录音太短：至少需要 {seconds} 秒的声音。"
    ),
    "The saved voices in {folder} cannot be changed: {reason}.": "无法更改 {folder} 中已保存的声音：{reason}。",
    "The language model produced numbers that stand for no sound; try again.": (
        "语言模型产生的编码不对应任何声音；请再试一次。"
    ),
    "The job was cancelled.": "任务已取消。",
    "The request was stopped while {what}.": "请求已停止。",
    "The synthesis was stopped.": "请求已停止。",
    "The language model produced {what}; trying again may help.": "语言模型没有产生声音；请再试一次。",
    "The flow produced {what}; trying again may help.": "Flow 没有产生有效的结果；请再试一次。",
    "The vocoder produced {what}; trying again may help.": "声码器没有产生有效的结果；请再试一次。",
}


def _pattern(template: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w+)\\\}", r"(?P<\1>.+)", re.escape(template)))


def in_language(sentence: str, language: Language) -> str:
    """Return a sentence of an error or a notice in the language of the page, in English where there is no other."""
    if language == "zh":
        for template, chinese in CHINESE.items():
            match = _pattern(template).fullmatch(sentence)
            if match is not None:
                return chinese.format(**match.groupdict())
    return sentence
