"""What the answer to the report says around its figures, in Chinese; the keys are those of words_en.py."""

from __future__ import annotations

ZH: dict[str, str] = {
    "title": "我们对报告的回答",
    "made_by": "本页由 [{name}.json](../benchmarks/{name}.json) 生成，命令为 `{command} --write`；请勿手工修改。",
    "read_this": (
        "报告在 {hardware} 上测量；下面我们的数字在随后注明的机器上测得。报告没有说明其语音有多长，因此两列的秒数"
        "不能互相相除，可比的是每一列自身的比值。“原始”指参考实现的做法（逐块循环、不断增长的缓存、没有计算图、"
        "什么都不保留），在这里用我们的算子、权重和线程数运行，并使用相同的随机数；它写出的令牌与我们的相同。"
    ),
    "conditions": "测量条件",
    "machine": "{cpu}，{cores} 核，{threads} 线程；{device}",
    "versions": "Python {python}，torch {torch}，ONNX Runtime {onnxruntime}，transformers {transformers}",
    "weights": "权重：{weights}（语言模型：{millions:.1f} 百万参数，宽度 {width}，{layers} 层）；{dtype}{tf32}",
    "what": "参考音频 {reference_seconds:g} 秒，生成语音 {sound_seconds:.2f} 秒，flow {flow_steps} 步；"
    "交错运行 {runs} 次，取中位数",
    "planned": "计划：参考音频 {reference_seconds:g} 秒，生成语音 {sound_seconds:g} 秒，flow {flow_steps} 步，"
    "运行 {runs} 次",
    "when": "提交 `{commit}`{dirty}，{date}；平均负载：之前 {before}，之后 {after}",
    "dirty": "（含未提交的修改）",
    "loaded": (
        "**测量时机器还在做其他工作**（平均负载接近或超过核数）：时钟秒数比空闲机器上更长、更分散；"
        "处理器时间才是工作本身的代价。"
    ),
    "table": "报告的表格",
    "head_row": "步骤",
    "head_report": "报告，{hardware}",
    "head_report_original": "与原始相比",
    "head_ours": "此处",
    "head_original": "与原始相比",
    "head_before": "与上一行相比",
    "head_processor": "处理器时间",
    "row_original": "原始",
    "row_tf32": "+ TF32",
    "row_onnx": "+ ONNX Runtime 用全部线程{cuda}",
    "row_first_write": "+ 缓存：首次写入",
    "row_hit_2": "命中 #2",
    "row_hit_3": "命中 #3",
    "row_ours_first": "**我们：首次**",
    "row_ours_hit_2": "**我们：命中 #2**",
    "row_ours_hit_3": "**我们：命中 #3**",
    "no_tf32": "需要 GPU",
    "cuda": "和 CUDA",
    "table_note": (
        "报告中 TF32 与 ONNX Runtime 合起来是 17 秒。它的各行保留原始的解码和声码器，我们直到“命中 #3”的各行也是如此。"
        "“与上一行相比”对我们自己的行而言，是与带缓存的原始做法的同一步相比。"
        "报告的首次写入是命中 #2 的 {report_ratio:.2f} 倍，我们的首次克隆是 {ours_ratio:.2f} 倍。"
    ),
    "spread": (
        "相同文本、种子和长度下 {hits} 次命中的离散度（最长 - 最短）/ 最短：时钟 {seconds:.1%}，处理器时间 "
        "{processor:.1%}。报告声称低于 {claimed:.0%}；它自己的两次命中相差 {reported:.1%}。"
    ),
    "targets": "要达到的目标",
    "target": "目标",
    "bound": "界限",
    "met": "按时钟达到",
    "yes": "是",
    "no": "**否**",
    "targets_note": "处理器时间显示繁忙机器所掩盖的；最终以空闲机器的时钟为准。",
    "target_windows": "编码器，所有窗口一次算完与循环之比，float32",
    "target_narrow": "编码器，bfloat16 与 int8 中较好者与循环之比",
    "target_hit": "命中：哈希与查找，10 秒参考音频",
    "target_hit_file": "命中，含文件解码",
    "target_miss_hit": "首次克隆 / 命中",
    "target_first": "原始 / 我们的首次克隆",
    "target_second": "原始 / 我们的命中",
    "target_rtf": "命中的 RTF，一次生成",
    "target_sound": "流式的首个声音",
    "target_batch": "语言模型，多段文本并排与逐段之比",
    "target_allocations": "解码步的内存分配",
    "target_waits": "解码步的主机同步",
    "target_spread": "命中的离散度",
    "stages": "时间花在哪里",
    "stage": "阶段",
    "other": "其他",
    "total": "合计",
    "stages_note": "各阶段时钟秒数的中位数；报告中“Clone”内部的划分只是猜测。",
    "switches": "每个开关单独的收益",
    "switch": "开关",
    "without": "关",
    "with": "开",
    "factor": "倍数",
    "saves": "节省",
    "check": "结果相同",
    "switch_windows": "Paraformer 所有窗口一次算完，而不是循环",
    "switch_beside": "四个编码器并行",
    "switch_cache": "编码来自缓存",
    "switch_step": "不分配内存的解码步（GPU 上用计算图），只算合法令牌",
    "switch_kernels": "解码步用自己的内核计算（CPU 上的小模型：一个编译好的循环）",
    "switch_kept": "保留提示词的开头",
    "switch_ahead": "flow 的时间嵌入和 adaLN 只算一次",
    "switches_note": (
        "只计该部分的秒数，其余完全相同；括号内为处理器时间。“结果相同”：相同编码或令牌的比例，"
        "flow 为梅尔谱的最大差值。"
    ),
    "advice": "报告的建议，逐条回答",
    "advice_head": "建议",
    "advice_answer": "我们的回答",
    "advice_figure": "测量值",
    "advice_light": "更轻的 FunASR 模型",
    "advice_light_answer": (
        "别的模型有别的编码，语言模型不认识（见 README 的 Engines 一节）；"
        "我们用另一种方式计算同一个模型：所有窗口一次算完，处理器支持时用 bfloat16 或 int8。"
    ),
    "advice_light_figure": "{size}，{seconds:g} 秒：循环 {loop}；{rows}",
    "size_real": "真实大小",
    "size_small": "小尺寸",
    "codes_kept": "{share:.1%} 的编码相同",
    "advice_onnx": "ONNX + TensorRT",
    "advice_onnx_answer": (
        "`export-encoder` 写出用于 CPU 和 CUDA 的 ONNX。不提供 TensorRT：它会舍入到 TF32，会话没有关闭它的选项，"
        "而舍入会改变编码。"
    ),
    "advice_onnx_figure": "ONNX Runtime {onnx}，torch {torch}",
    "not_measured": "本次未测量",
    "advice_small": "更小的语言模型",
    "advice_small_answer": (
        "那会是另一种声音。同一个模型可以压缩（`STEPAUDIO_VARIANT`），省的是内存。只有直接用压缩权重相乘、"
        "让每个令牌少读字节时才省时间：CPU 上的 `bnb-int8` 与 `awq` 就是这样，用的是 torch 的算子。"
        "其他压缩形式每次乘法都先解开矩阵。"
    ),
    "advice_small_products": "与真实模型同样大的一次乘法（{inner} x {outer}）：{rows}。",
    "advice_small_figure": "{ids} 个令牌含提示词：{variants}。{products}真实大小下每个令牌的字节："
    "bfloat16 {bf16:.2f} GB，4 位 {w4:.2f} GB（计算值）",
    "advice_flash": "Flash Attention 2",
    "advice_flash_answer": (
        "它没有本模型需要的平方根 ALiBi 偏置。注意力由 torch 带偏置融合计算；而且每个令牌的时间花在读取权重上，"
        "而不是注意力上。"
    ),
    "advice_flash_figure": "键和值占此处每个令牌读取量的 {share:.0%}，真实大小下为 {real:.1%}",
    "advice_fewer": "更少的新令牌",
    "advice_fewer_answer": (
        "令牌数由语音长度决定：每秒 41.67 个。按文本长度设的上限会终止失控的生成，保留的开头省去重读提示词。"
    ),
    "advice_fewer_figure": "每个令牌 {ms:.2f} 毫秒，即每秒语音 {per_second:.3f} 秒",
    "scenarios": "报告的场景",
    "scenario_1": "1. 同一声音，{texts} 段文本",
    "way": "方式",
    "arithmetic": "算式",
    "seconds": "秒",
    "baseline": "原始",
    "baseline_cached": "原始加缓存",
    "ours": "我们",
    "ours_batched": "我们，每批 {batch} 段",
    "scenario_1_note": (
        "由 {runs} 次运行的中位数估算。实测（{batch_runs} 次）：一批 {batch} 段文本 {texts}，"
        "同一文本 {batch} 个版本 {takes}，一段文本 {one}；并排工作的是语言模型，在 GPU 上还有 flow；其余部分逐个处理。"
    ),
    "scenario_2": "2. 每天 {requests:,} 个请求，70 % 命中",
    "mean": "平均",
    "hours": "每天小时数",
    "machine_share": "占一台机器",
    "mean_processor": "平均处理器时间",
    "scenario_2_right": (
        "报告说平均 {claimed} 秒。按它自己的数字是 0.3 x 12 + 0.7 x 8 = {mean:.1f} 秒，10,000 个请求需要 "
        "{hours:.1f} 小时：超过一块 GPU 的一天（{machine:.0%}），是原始 24 秒（{original:.1f} 小时）的 {ratio:.0%}。"
    ),
    "report_corrected": "报告的数字，更正后",
    "scenario_3": "3. 声音 A B C A B",
    "scenario_3_note": "实测；**粗体**：命中。",
    "live": "首个声音、流式、并发",
    "stream_note": (
        "流式，命中：**{first:.3f} 秒**后出声，{sound:.2f} 秒语音分 {pieces} 段共 {seconds:.3f} 秒（RTF {rtf:.3f}）；"
        "一次生成：{whole:.3f} 秒（RTF {whole_rtf:.3f}）。原始实现和报告没有流式：第一个声音与最后一个一起到。"
    ),
    "clients": "同时",
    "median": "中位数",
    "longest": "最长",
    "per_minute": "每分钟请求数",
    "queue_note": "全部命中，经过产品自己的队列（一个请求独占整台机器）；含等待时间。",
    "decode": "解码与其上限",
    "decode_note": (
        "单个序列：每秒 {rate:.0f} 个令牌（每个 {ms:.3f} 毫秒）。拷贝带宽 {bandwidth:.1f} GB/s，每个令牌读取 "
        "{megabytes:.1f} MB：上限每秒 {ceiling:.0f} 个，达到 **{share:.0%}**。"
        "稳态下每个令牌 {allocations:g} 次内存分配、{waits:.2g} 次主机同步。"
    ),
    "decode_cached": "这种大小的权重能（几乎）放进处理器缓存：这里的上限并不构成限制，代价在于算子的数量。",
    "decode_notice": (
        "这 {watched} 个令牌中计入的一次同步并不存在：该提交的测量程序把 torch 的同步监视器启动时给出的提示也算了进去。"
    ),
    "batch_note": (
        "{batch} 段文本：逐段 {one:.3f} 秒，并排 {together:.3f} 秒：**{factor:.1f} 倍**"
        "（处理器时间 {processor:.1f} 倍）。"
        "同一文本 {batch} 个版本：{takes:.3f} 秒，一个版本 {take:.3f} 秒，吞吐量 {takes_factor:.1f} 倍。"
    ),
    "encoder": "编码器与长度",
    "encoder_note": "{size}的 Paraformer 编码器，随机权重，torch float32。",
    "clip": "音频",
    "loop": "逐块循环",
    "windows": "所有窗口一次算完",
    "codes_equal": "编码相同",
    "hit_note": (
        "{seconds:g} 秒音频的一次命中：哈希 {hash:.1f} 毫秒 + 查找 {lookup:.1f} 毫秒，解码 WAV 文件 {decode:.1f} 毫秒。"
        "报告的命中：15 毫秒。"
    ),
    "projection": "计算值：真实模型在 {card} 上",
    "projection_note": (
        "**不是测量值。** 参考音频 {reference:g} 秒，语音 {sound:g} 秒，{steps} 步。"
        "解码达到 {bandwidth:.0f} GB/s 所允许的 {share:.0%}（{share_kind}）；"
        "假定的峰值比例：预填充 {prefill:.0%}，flow {flow:.0%}，HiFT {hift:.0%}，编码器 "
        "{encoder:.0%}；未计算子启动的时间。"
    ),
    "share_assumed": "假定",
    "share_measured_above": "在上述 GPU 上测得，相对于其实际拷贝带宽",
    "share_measured_below": "在下述 GPU 上测得，相对于其实际拷贝带宽",
    "takes_measured": "16 个版本并排解码的速度是逐个解码的 {gain:.1f} 倍，同样在那里测得。",
    "precision": "权重",
    "weights_bfloat16": "bfloat16",
    "weights_W4A16": "4 位，需要直接相乘的算子（GPU 上我们没有）",
    "projected_decode": "解码",
    "projected_rest": "预填充 + flow + HiFT",
    "projected_hit": "命中",
    "projected_miss": "未命中",
    "projected_takes": "16 个版本中的一个",
    "report_row": "报告（长度未知）",
    "open": "这里没有测量的",
    "open_gpu": "这里没有任何部分在 GPU 上运行：CUDA 计算图、TF32 以及 GPU 上真实大小的数字尚待测量，命令为 "
    "`python -m stepaudio bench --full-size --device cuda --write`。",
    "open_random": "权重是随机的：时间与权重内容无关，声音则有关。",
    "open_parts": "真实大小下，以下部分尚未在 GPU 上测量：{parts}。"
    "全部测量的命令为 `python -m stepaudio bench --full-size --device cuda --write`。",
    "full": "真实大小",
    "unfinished": (
        "来自 [full-size.parts.json](../benchmarks/full-size.parts.json)，由 `{command}` 在中止之前写出。"
        "已测量：{parts}。"
    ),
    "decode_runs": "解码：{sequences} 个序列的中位数；多个并排：运行 {runs} 次。",
    "comma": "、",
    "part_decoding": "解码",
    "part_clones": "完整克隆",
    "part_batch": "成批克隆",
    "part_stream": "流式与首个声音",
    "part_hit": "一次命中的代价",
    "part_switches": "每个开关单独的收益",
    "part_concurrency": "并发请求",
    "part_variants": "语言模型的变体",
    "part_engines": "编码器引擎",
    "part_voices": "重复出现的声音",
    "part_scaling": "编码器与长度",
}
