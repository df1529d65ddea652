"""Every word of the page, in English and Chinese; for the sentences of errors and notices see sentences.py."""

from __future__ import annotations

from typing import Literal

Language = Literal["en", "zh"]
LANGUAGES: dict[Language, str] = {"en": "English", "zh": "中文"}

STRINGS: dict[Language, dict[str, str]] = {
    "en": {
        "title": "Clone a voice",
        "intro": "Give a few seconds of a voice and the words spoken in it, type a text, and hear it in that voice.",
        "reference": "Reference: upload a file or record",
        "transcript": "Transcript: the words spoken in the reference",
        "transcript_hint": "Type exactly what is said in the recording",
        "text": "Text to speak",
        "text_hint": "What should the voice say?",
        "advanced": "Advanced",
        "new_seed": "Draw a new seed each time",
        "seed": "Seed (the one used is written back here)",
        "temperature": "Temperature (0: always the likeliest)",
        "top_k": "Top-k (0: off)",
        "top_p": "Top-p (1: off)",
        "max_seconds": "Longest output, seconds",
        "flow_steps": "Flow steps (more: finer and slower)",
        "generate": "Generate",
        "stop": "Stop",
        "live": "Play while it is being made",
        "first_sound": "The first sound was ready after {seconds:.2f} s.",
        "result": "Result",
        "stage": "stage",
        "seconds": "seconds",
        "share": "share",
        "busy": "busy",
        "busy_hint": "what the part itself worked; parts run side by side",
        "note": "note",
        "total": "total",
        "hit": "Cache hit: the reference was known, encoding it was saved.",
        "miss": "Cache miss: the reference was encoded and kept for next time.",
        "summary": "{seconds:.2f} s of sound in {total:.2f} s (RTF {rtf:.3f}), seed {seed}, {stopped}.",
        "stopped_end": "ended by itself",
        "stopped_length": "stopped by the length cap",
        "cache": "Encoder cache",
        "cache_stats": "Hits: {hits} · misses: {misses} · voices: {entries} ({megabytes:.2f} MB) · "
        "really saved: {saved:.1f} s",
        "cache_off": "The cache is switched off.",
        "clear": "Clear the cache",
        "clear_sure": "Remove all kept encodings? Each voice will be encoded anew the next time.",
        "clear_yes": "Yes, clear it",
        "clear_no": "No, keep it",
        "cleared": "Removed {count} entries.",
        "loading": "The models are being loaded; a request now will wait until they are ready.",
        "waiting": "Waiting: {position} ahead",
        "stage_FunASR": "Encoding the reference",
        "stage_LLM": "Writing speech tokens",
        "stage_Flow": "Making the mel spectrogram",
        "stage_Vocoder": "Making the sound",
        "no_reference": "Please upload or record a reference first.",
        "internal": "Internal error, request {id}: the server's log says more.",
        "weights": "Weights: {title} ({path}). Running: {summary}.",
        "language": "Language",
        "notice": "Only clone voices of people who agreed to it.",
    },
    "zh": {
        "title": "克隆声音",
        "intro": "提供几秒钟的声音和其中所说的文字，再输入一段文本，即可用该声音读出来。",
        "reference": "参考音频：上传文件或录音",
        "transcript": "参考文本：音频中所说的内容",
        "transcript_hint": "请准确输入录音中所说的话",
        "text": "要朗读的文本",
        "text_hint": "希望这个声音说什么？",
        "advanced": "高级设置",
        "new_seed": "每次使用新的随机种子",
        "seed": "随机种子（所用的种子会写回此处）",
        "temperature": "温度（0：总取最可能的）",
        "top_k": "Top-k（0：关闭）",
        "top_p": "Top-p（1：关闭）",
        "max_seconds": "最长输出（秒）",
        "flow_steps": "Flow 步数（越多越细致，也越慢）",
        "generate": "生成",
        "stop": "停止",
        "live": "边生成边播放",
        "first_sound": "首段声音在 {seconds:.2f} 秒后就绪。",
        "result": "结果",
        "stage": "阶段",
        "seconds": "秒",
        "share": "占比",
        "busy": "自身耗时",
        "busy_hint": "该部分自身的耗时；各部分并行运行",
        "note": "说明",
        "total": "合计",
        "hit": "缓存命中：该参考音频已编码过，省去了编码时间。",
        "miss": "缓存未命中：参考音频已编码并保存，下次直接使用。",
        "summary": "生成 {seconds:.2f} 秒声音，用时 {total:.2f} 秒（RTF {rtf:.3f}），种子 {seed}，{stopped}。",
        "stopped_end": "自然结束",
        "stopped_length": "达到长度上限而停止",
        "cache": "编码缓存",
        "cache_stats": "命中：{hits} · 未命中：{misses} · 声音：{entries}（{megabytes:.2f} MB）· "
        "实际节省：{saved:.1f} 秒",
        "cache_off": "缓存已关闭。",
        "clear": "清空缓存",
        "clear_sure": "确定删除所有已保存的编码吗？之后每个声音都需要重新编码。",
        "clear_yes": "是，清空",
        "clear_no": "否，保留",
        "cleared": "已删除 {count} 个条目。",
        "loading": "模型正在加载；现在提交的请求会等待加载完成。",
        "waiting": "排队中：前面还有 {position} 个",
        "stage_FunASR": "正在编码参考音频",
        "stage_LLM": "正在生成语音编码",
        "stage_Flow": "正在生成梅尔频谱",
        "stage_Vocoder": "正在合成声音",
        "no_reference": "请先上传或录制参考音频。",
        "internal": "内部错误，请求编号 {id}：详情请查看服务器日志。",
        "weights": "权重：{title}（{path}）。运行方式：{summary}。",
        "language": "语言",
        "notice": "请仅克隆已获得本人同意的声音。",
    },
}


def language_of(accept_language: str) -> Language:
    """Return the language of a browser's Accept-Language header: Chinese where it comes first, else English."""
    return "zh" if accept_language.strip().lower().startswith("zh") else "en"


def say(language: Language, key: str, **values: object) -> str:
    """Return a string of the page in this language, with its values filled in."""
    return STRINGS[language][key].format(**values) if values else STRINGS[language][key]
