"""How often the encoding of captions that are not UTF-8 is told rightly: phrases drawn at random, in each encoding.

python -m benchmarks.told_encodings [--draws N] [--seed S]   a table, as docs/check.md has it

A caption is two or five different phrases of one language, with the commas of that language or with plain ones, saved
in an encoding that programs use for it. It is told by that alone, as `check --fix` tells a file by itself.
"""

from __future__ import annotations

import argparse
import random
from collections import Counter

from lora_scripts.utf8 import guess_encoding

PHRASES = {
    "Chinese": """
        女孩 一个女孩 长发 黑色的头发 蓝眼睛 微笑 看着镜头 白色连衣裙 校服 戴眼镜的男人 站在桥上 坐在窗边 夜里的城市
        霓虹灯 下着雨 红色的汽车 古老的街道 远处的山 日落 蓝天白云 樱花树下 雪地里的狐狸 一只橘猫 狗在奔跑
        桌上的咖啡 水彩画 油画风格 单人 全身 特写 侧脸 高质量 细节丰富 柔和的光线 逆光 黑白照片 雾气弥漫的森林
        海边的灯塔 旧报纸 机器人 宇航员 城堡 龙 骑马的武士 竹林 灯笼 茶馆 湖面倒影 星空 秋天的落叶 穿着毛衣 双手插兜
        红围巾 帽子 雨伞 背景虚化 简单的背景 俯视角度 房间内部 木地板 书架 窗帘 阳光照进来 厨房 面包和牛奶 鲜花 气球
        儿童 老人 婚纱""",
    "Chinese, traditional signs": """
        女孩 一個女孩 長髮 黑色的頭髮 藍眼睛 微笑 看著鏡頭 白色連衣裙 校服 戴眼鏡的男人 站在橋上 坐在窗邊 夜裡的城市
        霓虹燈 下著雨 紅色的汽車 古老的街道 遠處的山 日落 藍天白雲 櫻花樹下 雪地裡的狐狸 一隻橘貓 狗在奔跑
        桌上的咖啡 水彩畫 油畫風格 單人 全身 特寫 側臉 高品質 細節豐富 柔和的光線 逆光 黑白照片 霧氣瀰漫的森林
        海邊的燈塔 舊報紙 機器人 太空人 城堡 龍 騎馬的武士 竹林 燈籠 茶館 湖面倒影 星空 秋天的落葉 穿著毛衣
        雙手插口袋 紅圍巾 帽子 雨傘 背景虛化 簡單的背景 俯視角度 房間內部 木地板 書架 窗簾 陽光照進來 廚房
        麵包和牛奶 鮮花 氣球 兒童 老人 婚紗""",
    "Japanese": """
        女の子 一人の少女 長い髪 黒髪 青い目 笑顔 カメラ目線 白いワンピース 制服 眼鏡をかけた男性 橋の上に立つ
        窓辺に座る 夜の街 ネオン 雨が降っている 赤い車 古い通り 遠くの山 夕日 青空と雲 桜の木の下 雪の中の狐
        オレンジ色の猫 走る犬 机の上のコーヒー 水彩画 油絵風 ひとり 全身 クローズアップ 横顔 高品質 細かい描写
        柔らかい光 逆光 白黒写真 霧の森 海辺の灯台 新聞紙 ロボット 宇宙飛行士 お城 ドラゴン 馬に乗る武士 竹林 提灯
        茶屋 湖に映る空 星空 紅葉 セーター ポケットに手を入れる 赤いマフラー 帽子 傘 ぼかした背景 シンプルな背景
        見下ろす構図 部屋の中 木の床 本棚 カーテン 差し込む光 台所 パンと牛乳 花 風船 子供 老人 ウェディングドレス""",
    "Korean": """
        소녀 한_명의_소녀 긴_머리 검은_머리 파란_눈 미소 카메라를_보는 흰_원피스 교복 안경_쓴_남자 다리_위에_서_있는
        창가에_앉은 밤의_도시 네온사인 비가_내리는 빨간_자동차 오래된_거리 먼_산 노을 파란_하늘과_구름 벚꽃나무_아래
        눈_속의_여우 주황색_고양이 달리는_개 책상_위의_커피 수채화 유화_스타일 혼자 전신 클로즈업 옆모습 고품질
        세밀한_묘사 부드러운_빛 역광 흑백_사진 안개_낀_숲 바닷가_등대 낡은_신문 로봇 우주비행사 성 용 말을_탄_무사
        대나무_숲 등불 찻집 호수에_비친_하늘 별이_빛나는_밤 단풍 스웨터""",
    "German": """
        ein_Mädchen lange_Haare schöne_Augen ein_Mann_mit_Brille über_der_Brücke grüne_Hügel Straße_im_Regen müde
        Häuser_am_Fluss zwei_Bäume ein_süßer_Hund kühles_Licht Frühling eine_offene_Tür Öl_auf_Leinwand weißes_Kleid
        natürlich Überblendung""",
    "French": """
        une_fille cheveux_foncés été_à_la_plage déjà_vu une_forêt_brumeuse robe_bleue château_près_du_fleuve élève
        un_garçon où_l’on_danse cœur_brisé lumière_tamisée «_rêve_» nuit_étoilée_–_août vêtements_noirs plein_écran
        ÉTÉ tête_penchée""",
    "Spanish": """
        una_niña el_señor_mayor corazón montaña_nevada jardín_con_árboles luz_cálida otoño pájaro_azul canción
        ¿quién_es? fotografía_antigua cámara camión_rojo mañana_en_la_ciudad un_perro_pequeño cielo_despejado
        ojos_marrones ÁNGEL""",
    "Swedish": """
        en_flicka långt_hår gatan_på_natten blå_himmel höst_i_skogen två_träd_vid_sjön grön_tröja en_gammal_bil
        öppen_dörr ett_fönster på_väg_hem ljus_från_månen snö_över_ån kärlek färgglad_målning Ängel""",
    "Russian": """
        девушка_с_зонтом длинные_волосы голубые_глаза улыбка белое_платье мужчина_в_очках ночной_город идёт_дождь
        красная_машина старая_улица далёкие_горы закат осенний_лес акварель чёрно-белое_фото рыжий_кот портрет
        высокое_качество""",
    "Polish": """
        dziewczyna_z_parasolem długie_włosy niebieskie_oczy uśmiech biała_sukienka mężczyzna_w_okularach
        nocne_miasto łąka pada_śnieg czerwony_samochód stara_ulica odległe_góry zachód_słońca jesienny_las źródło
        żółty_kwiat książka""",
}
"""What captions say, of things and of how they are drawn; _ is a blank in a phrase."""
ROWS = (
    ("Chinese", "gbk", "GBK (Chinese)"),
    ("Chinese, traditional signs", "gbk", "GBK (Chinese)"),
    ("Chinese, traditional signs", "big5", "Big5 (Chinese)"),
    ("Japanese", "shift_jis", "Shift-JIS (Japanese)"),
    ("Japanese", "euc_jp", "EUC-JP (Japanese)"),
    ("Korean", "cp949", "EUC-KR (Korean)"),
    *(
        (language, "cp1252", "Windows-1252 (Western European)")
        for language in ("German", "French", "Spanish", "Swedish")
    ),
    ("Russian", "cp1251", ""),
    ("Polish", "cp1250", ""),
)
"""Language, encoding, and its name as it is told; "": none that is known here."""
COMMAS = {"Chinese": "\uff0c", "Chinese, traditional signs": "\uff0c", "Japanese": "\u3001"}
"""Their own; every other caption has plain ones, as those of the other languages."""


def drawn(language: str, codec: str, count: int, rng: random.Random) -> bytes:
    """A caption of so many phrases, not all of which are ASCII."""
    words = [word.replace("_", " ") for word in PHRASES[language].split()]
    while (text := rng.choice([", ", COMMAS.get(language, ", ")]).join(rng.sample(words, count))).isascii():
        pass
    return text.encode(codec)


def counted(row: tuple[str, str, str], count: int, draws: int, seed: int) -> Counter[str]:
    """How many draws were told rightly, were left (several names, or none), and were taken for another encoding."""
    language, codec, name = row
    rng, found = random.Random(f"encodings/{seed}/{language}/{codec}/{count}"), Counter[str]()
    for _ in range(draws):
        told = guess_encoding(drawn(language, codec, count, rng))
        known = " or " not in told and not told.startswith("an encoding")
        found["right" if told == name else f"taken for {told}" if known else "left"] += 1
    return found


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--draws", type=int, default=3000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(f"| captions | encoding | {' | '.join(f'of {n} phrases: right, left, wrong' for n in ('five', 'two'))} |")
    print("|---|---|---|---|")
    for row in ROWS:
        cells = []
        for count in (5, 2):
            found = counted(row, count, options.draws, options.seed)
            right, left = found.pop("right", 0), found.pop("left", 0)
            shares = [f"{100 * n / options.draws:.1f} %" for n in (right, left, sum(found.values()))]
            cells.append(", ".join(shares) + "".join(f"; {what}: {n}" for what, n in found.most_common(2)))
        print(f"| {row[0]} | {row[1]} | {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
