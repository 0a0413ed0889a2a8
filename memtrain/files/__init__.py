"""Reading and writing of files. Everything that a stranger wrote is read here, each kind by one stated contract.

| module | contract |
|---|---|
| `text` | UTF-8 text, JSON and JSON lines: sizes, depth, NaN, NUL |
| `csv_table` | CSV: no row is swallowed, no value stands under another column |
| `sheet_cells` | text in memtrain's CSV files, which no spreadsheet evaluates |
| `key_table` | tables of keys, such as flagged.csv, also after a spreadsheet saved them |
| `parquet_table` | Parquet: whole files with the needed columns |
| `prompt_file` | the rows of a file of prompts, of many kinds |
| `prompt_texts` | prompts as text, and lists, arrays and columns of them |
| `yaml_file` | YAML of plain values: sizes, aliases |
| `pictures` | the image formats that are decoded, and their sizes |
| `inside` | names from a file that become paths |
| `shown` | strangers' text on a terminal |
| `lock` | one process at a time in a folder |
| `whole` | written files, which are whole or absent, and full disks |
| `output` | printed text: printing can fail, and ends nothing |
| `earlier_run`, `resume_contract` | the parts that a run takes over from a checkpoint's run, and allowed changes |

A refusal is one error that names the file, the place in it and the remedy. This package imports nothing of memtrain but
its errors.
"""
